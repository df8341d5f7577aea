"""Build the tables of report.md and report.html: printed values by system and metric, with the best ones marked."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from src.runtime.text_tables import markdown_table

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "prism_mean", "prism_best")
HIGHER_IS_BETTER = {*METRICS, "Div-1", "Div-2", "self-CIDEr", "best-CIDEr"}
LOWER_IS_BETTER = {"mBLEU", "function_word", "truncated"}
_HISTORIES = ("val/CIDEr", "rollout/reward_mean", "rollout/length_mean", "train/entropy", "train/kl", "train/loss")

Runs = Mapping[str, Sequence[Sequence[dict]]]  # lines of metrics.jsonl of each seed, by system


class ReportTable(NamedTuple):
    """A table of printed values: its columns, rows by name, marked cells (row, column), and the meaning of the mark.

    of_systems: whether the rows are named after systems or pairs of systems.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    marked: frozenset[tuple[str, str]] = frozenset()
    mark: str = "best"
    of_systems: bool = True

    def markdown(self) -> list[str]:
        """Return the lines of the table with its title."""
        rows = [[name, *cells] for name, cells in self.rows.items()]
        return [self.title, "", *markdown_table(["", *self.columns], rows)]


def comparison_tables(report: Mapping[str, Any], published: Mapping[str, str]) -> list[ReportTable]:
    """Build the tables of a comparison from its report.json. published: CIDEr by system (`published_figures`)."""
    tables = score_tables(report["systems"]) + difference_tables(report["differences"])
    for title, section in (("Budget of one seed", "budget"), ("Stability", "stability")):
        names = list(next(iter(report[section].values())))
        tables.append(_value_table(f"{title} (docs/metrics.md).", report[section], names))
    if published:
        tables.append(ReportTable("Published CIDEr", ["CIDEr"], {key: [figure] for key, figure in published.items()}))
    return tables


def score_tables(systems: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """Build the tables of metrics, and of diversity and endings, from `over_seeds` of each system."""
    first, *rest = systems.values()
    names = [name for name in first if all(name in table for table in rest)]
    metrics = [name for name in names if name in METRICS]
    means = {system: {name: table[name]["mean"] for name in names} for system, table in systems.items()}
    rows = {system: [_printed_score(table[name]) for name in metrics] for system, table in systems.items()}
    seeds = ", means and standard deviations over seeds" if len(first[names[0]]["seeds"]) > 1 else ""
    title = f"Scores of decoded captions, times 100{seeds}. The best value of each column is marked."
    tables = [ReportTable(title, metrics, rows, best_cells(means, metrics, lambda name, value: f"{100 * value:.1f}"))]
    if others := [name for name in names if name not in METRICS]:
        title = "Diversity of sampled captions, and endings of the decoded ones (docs/metrics.md)."
        tables.append(_value_table(title, means, others))
    return tables


def difference_tables(pairs: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """Build the table of `differences`; none if there is no pair."""
    if not pairs:
        return []
    metrics = [name for name in METRICS if name in next(iter(pairs.values()))]
    rows = {pair: [_printed_interval(values[name]) for name in metrics] for pair, values in pairs.items()}
    clear = frozenset(
        (pair, name)
        for pair, values in pairs.items()
        for name in metrics
        if values[name]["low"] > 0 or values[name]["high"] < 0
    )
    several = len(next(iter(pairs.values()))[metrics[0]]["seeds"]) > 1
    title = (
        "Differences, times 100, with 95 % intervals of a paired bootstrap over images"
        + (", and each seed's difference in parentheses" if several else "")
        + ". Intervals cover the choice of images, not the variance of training; those that exclude 0 are marked."
        + (" BLEU and METEOR are computed from the counts of all seeds together." if several else "")
    )
    return [ReportTable(title, metrics, rows, clear, mark="excludes 0")]


def _value_table(title: str, systems: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> ReportTable:
    rows = {system: [_printed_number(name, values[name]) for name in names] for system, values in systems.items()}
    return ReportTable(title, names, rows, best_cells(systems, names, _printed_number))


def best_cells(
    rows: Mapping[str, Mapping[str, float]], names: Sequence[str], printed: Callable[[str, float], str]
) -> frozenset[tuple[str, str]]:
    """Find the cells (row, column) with the best printed value of their column; none if the whole column prints alike.

    A metric has no best unless high or low is better.
    """
    best = set()
    for name in HIGHER_IS_BETTER.union(LOWER_IS_BETTER).intersection(names):
        values = {row: rows[row][name] for row in rows}
        winner = printed(name, (max if name in HIGHER_IS_BETTER else min)(values.values()))
        cells = {(row, name) for row, value in values.items() if printed(name, value) == winner}
        best |= cells if len(cells) < len(rows) else set()
    return frozenset(best)


def series(lines: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of one logged name."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def logged(runs: Runs) -> list[str]:
    """List those of _HISTORIES that any run has logged."""
    names = {name for seeds in runs.values() for lines in seeds for line in lines for name in line}
    return [name for name in _HISTORIES if name in names]


def history_tables(runs: Runs) -> list[ReportTable]:
    """Build the table of first and last values of each history, means over seeds: the curves as text; none if empty."""
    names = logged(runs)
    rows: dict[str, list[str]] = {system: [] for system in runs}
    for system, seeds in runs.items():
        for name in names:
            found = [series(lines, name)[1] for lines in seeds]
            ends = [round(mean(values[end] for values in found), 3) for end in (0, -1)] if all(map(len, found)) else []
            rows[system].append(" to ".join(f"{end + 0.0:.3f}" for end in ends))  # + 0.0: no -0.000
    title = "First and last logged value of each history (docs/metrics.md)."
    return [ReportTable(title, names, rows)] if names else []


def _printed_score(values: Mapping) -> str:
    """Print the mean of a metric from `over_seeds`, and its deviation if there are several seeds, times 100."""
    return f"{100 * values['mean']:.1f}" + (f" ± {100 * values['std']:.1f}" if len(values["seeds"]) > 1 else "")


def _printed_interval(values: Mapping) -> str:
    """Print a difference with its interval, and each seed's difference if there are several, times 100."""
    seeds = ", ".join(f"{100 * seed:+.1f}" for seed in values["seeds"])
    interval = f"{100 * values['mean']:+.1f} [{100 * values['low']:+.1f}, {100 * values['high']:+.1f}]"
    return interval + (f" ({seeds})" if len(values["seeds"]) > 1 else "")


def _printed_number(name: str, value: float) -> str:
    """Print a value for a table: CIDEr times 100, and nothing in scientific notation."""
    if name in ("best-CIDEr", "largest_fall_of_val_CIDEr"):
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
