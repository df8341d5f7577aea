"""report.html, one file beside report.md: scores with best values and intervals, curves, and a gallery of images.

Written last, in this process, after those that trained and evaluated: it runs the models on the gallery's images.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from src.evaluation.comparison import (
    METRICS,
    differences,
    over_seeds,
    printed_interval,
    printed_number,
    printed_score,
    published_figures,
    read_results,
)
from src.evaluation.files import write_text
from src.evaluation.gallery import build_gallery
from src.evaluation.html import Plot, ReportTable, label, listed, render_page
from src.evaluation.plots import HISTORIES, plot_histories, plot_quality_diversity, series
from src.evaluation.prism import RESAMPLES
from src.evaluation.report import System, prism_rows
from src.runtime.environment import prepare_environment
from src.training.metrics import read_lines

HIGHER_IS_BETTER = {*METRICS, "Div-1", "Div-2", "self-CIDEr", "best-CIDEr"}
LOWER_IS_BETTER = {"mBLEU", "function_word", "truncated"}
_QUALITY = "CIDEr of greedy captions against self-CIDEr of samples: above is better, to the right is more diverse."
_COMPARISON_PLOTS = {
    "learning.png": "Validation CIDEr against decoded captions, and against seconds of sampling, reward and updates.",
    "curves.png": "Reward, KL against the CE policy, entropy and length of samples against the share of the run.",
    "quality_diversity.png": _QUALITY,
}


def write_stages_page(systems: Mapping[str, System], name: str, path: Path) -> None:
    """Write the page of the stages that one script has run, and its plots beside it.

    systems: by stage; name: of the results (`results_name`). Errors: InputError where results, weights or images are
    missing.
    """
    results = read_results({stage: [system.folder] for stage, system in systems.items()}, name)
    only = {stage: evaluations[0] for stage, evaluations in results.evaluations.items()}
    tables = score_tables({stage: over_seeds([evaluation]) for stage, evaluation in only.items()})
    tables += difference_tables(differences(results.segments, RESAMPLES))
    title, rows = prism_rows(only)
    if rows:
        tables.append(ReportTable(title, [label(stage) for stage in only if "prism" in only[stage]], rows))
    lines = {stage: [read_lines(system.folder / "metrics.jsonl")] for stage, system in systems.items()}
    plots = []
    if logged(lines):
        plot_histories({label(stage): seeds[0] for stage, seeds in lines.items()}, path.with_name("histories.png"))
        plots.append(Plot(path.with_name("histories.png"), "Histories of each stage against its updates."))
    if all("diversity" in evaluation for evaluation in only.values()):
        plot_quality_diversity(results.evaluations, path.parent)
        plots.append(Plot(path.with_name("quality_diversity.png"), _QUALITY))
    about = "".join(f"{remark}. " for remark in results.remarks) + f"Signature: {results.signature}."
    _write(systems, name, path, tables, plots, lines, about)


def write_comparison_page(
    systems: Mapping[str, System], folders: Mapping[str, Sequence[Path]], name: str, target: Path
) -> None:
    """The page of a comparison, from report.json and the plots in `target`, where report.html is written.

    systems: those of the first seed, whose captions the page shows; folders: the run folders of all seeds.
    """
    report = json.loads((target / "report.json").read_text(encoding="utf-8"))
    tables = score_tables(report["systems"]) + difference_tables(report["differences"])
    for title, section in (("Budget of one seed", "budget"), ("Stability", "stability")):
        tables.append(value_table(f"{title} (docs/metrics.md).", report[section]))
    config = systems["ce"].config
    published = published_figures(config.data.dataset, name.partition("_")[0])
    if published:
        tables.append(ReportTable("Published CIDEr", ["CIDEr"], {key: [figure] for key, figure in published.items()}))
    plots = [Plot(target / file, title) for file, title in _COMPARISON_PLOTS.items()]
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    seeds = len(folders["ce"])
    about = (
        f"{seeds} seeds, ± is the standard deviation over them; images show seed {config.seed}. " if seeds > 1 else ""
    )
    about += "".join(f"{remark}. " for remark in report["remarks"])
    about += f"Signature: {report['signatures']['score']}."
    _write(systems, name, target / "report.html", tables, plots, lines, about)


def score_tables(systems: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """Metrics, and measures of diversity and endings, of what `over_seeds` returns of each system."""
    first, *rest = systems.values()
    names = [name for name in first if all(name in table for table in rest)]
    metrics = [name for name in names if name in METRICS]
    means = {name: {label(key): table[name]["mean"] for key, table in systems.items()} for name in metrics}
    best = best_cells(means, lambda name, value: f"{100 * value:.1f}")
    rows = {label(key): [printed_score(table[name]) for name in metrics] for key, table in systems.items()}
    tables = [
        ReportTable("Scores of decoded captions, times 100. The best of each column is marked.", metrics, rows, best)
    ]
    others = [name for name in names if name not in METRICS]
    if others:
        title = "Diversity of sampled captions, and endings of the decoded ones (docs/metrics.md)."
        means = {key: {name: table[name]["mean"] for name in others} for key, table in systems.items()}
        tables.append(value_table(title, means))
    return tables


def difference_tables(pairs: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """A table of what `differences` returns; no table where there is no pair."""
    if not pairs:
        return []
    metrics = [name for name in METRICS if name in next(iter(pairs.values()))]
    names = {pair: " minus ".join(map(label, pair.split("-"))) for pair in pairs}
    rows = {
        names[pair]: [printed_interval(values[name]).replace(" ", "\n", 1) for name in metrics]
        for pair, values in pairs.items()
    }
    clear = frozenset(
        (names[pair], name)
        for pair, values in pairs.items()
        for name in metrics
        if values[name]["low"] > 0 or values[name]["high"] < 0
    )
    title = (
        "Differences, times 100, with the 95 % interval of a paired bootstrap over images, which covers their choice, "
        "not the variance of training. Marked where it excludes 0."
    )
    return [ReportTable(title, metrics, rows, clear, mark="excludes 0")]


def value_table(title: str, systems: Mapping[str, Mapping[str, float]]) -> ReportTable:
    """A table of values by system and name."""
    names = list(next(iter(systems.values())))
    columns = {name: {label(key): values[name] for key, values in systems.items()} for name in names}
    rows = {label(key): [printed_number(name, values[name]) for name in names] for key, values in systems.items()}
    return ReportTable(title, names, rows, best_cells(columns, printed_number))


def best_cells(
    columns: Mapping[str, Mapping[str, float]], printed: Callable[[str, float], str]
) -> frozenset[tuple[str, str]]:
    """The cells (row, column) with the best value of their column as it is printed; none where all print alike.

    columns: by name of a metric the value of each row. What is neither better high nor better low has no best.
    """
    best = set()
    for name, values in columns.items():
        if name not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            continue
        winner = printed(name, (max if name in HIGHER_IS_BETTER else min)(values.values()))
        rows = {(row, name) for row, value in values.items() if printed(name, value) == winner}
        best |= rows if len(rows) < len(values) else set()
    return frozenset(best)


def logged(lines: Mapping[str, Sequence[Sequence[dict]]]) -> list[str]:
    """Which of HISTORIES any run has logged. lines: of metrics.jsonl, by system for each seed."""
    names = {name for seeds in lines.values() for rows in seeds for line in rows for name in line}
    return [name for name in HISTORIES if name in names]


def history_table(lines: Mapping[str, Sequence[Sequence[dict]]]) -> ReportTable:
    """First and last value of each history, means over seeds: the curves in words."""
    names = logged(lines)
    rows: dict[str, list[str]] = {}
    for system, seeds in lines.items():
        rows[label(system)] = []
        for name in names:
            found = [series(line, name)[1] for line in seeds]
            ends = [round(mean(values[end] for values in found), 3) for end in (0, -1)] if all(map(len, found)) else []
            rows[label(system)].append(" to ".join(f"{end + 0.0:.3f}" for end in ends))  # + 0.0: no -0.000
    return ReportTable("First and last logged value of each history (docs/metrics.md).", names, rows)


def _write(
    systems: Mapping[str, System],
    name: str,
    path: Path,
    tables: Sequence[ReportTable],
    plots: Sequence[Plot],
    lines: Mapping[str, Sequence[Sequence[dict]]],
    about: str,
) -> None:
    """Run the models on the gallery's images, and write the page."""
    prepare_environment(convolutions=any(system.config.convolves for system in systems.values()))
    from src.runtime.device import setup_device

    config = next(iter(systems.values())).config
    setup_device(config)
    split, _, decoding = name.partition("_")
    pictures, images = build_gallery(systems, split, name)
    title = f"{listed([label(system) for system in systems])} on {config.data.dataset}, {split} split"
    intro = f"{images:,} images, {decoding or 'greedy'} decoding. {about}"
    histories = [history_table(lines)] if logged(lines) else []
    write_text(path, render_page(title, intro, tables, plots, histories, pictures, images))
