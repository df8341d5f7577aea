"""Write report.html, one file beside report.md: scores with best values and intervals, curves, a gallery of images.

It is written last: this process runs the models on the gallery's images after training and evaluation have ended.
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
from src.evaluation.html import ReportTable, label, listed, render_page
from src.evaluation.plots import HISTORIES, plot_histories, plot_quality_diversity, series
from src.evaluation.prism import RESAMPLES
from src.evaluation.report import System, prism_rows
from src.runtime.environment import prepare_environment
from src.training.metrics import read_lines

HIGHER_IS_BETTER = {*METRICS, "Div-1", "Div-2", "self-CIDEr", "best-CIDEr"}
LOWER_IS_BETTER = {"mBLEU", "function_word", "truncated"}
_QUALITY = "CIDEr of greedy captions against self-CIDEr of samples: higher is better, further right is more diverse."
_COMPARISON_PLOTS = {
    "learning.png": "Validation CIDEr against decoded captions, and against seconds of sampling, reward and updates.",
    "curves.png": "Reward, KL against the CE policy, entropy and length of samples against the share of the run.",
    "quality_diversity.png": _QUALITY,
}


def write_stages_page(systems: Mapping[str, System], name: str, path: Path) -> None:
    """Write the page of the stages that one script has run, and its plots beside it.

    systems: by stage; name: of the results (`results_name`). Errors: InputError if results, weights or images are
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
    plots = {}
    if logged(lines):
        file = path.with_name("histories.png")
        plot_histories({label(stage): seeds[0] for stage, seeds in lines.items()}, file)
        plots[file] = "Histories of each stage against its updates."
    if all("diversity" in evaluation for evaluation in only.values()):
        plot_quality_diversity(results.evaluations, path.parent)
        plots[path.with_name("quality_diversity.png")] = _QUALITY
    _write(systems, name, path, tables, plots, lines, [*results.remarks, f"Signature: {results.signature}"])


def write_comparison_page(
    systems: Mapping[str, System], folders: Mapping[str, Sequence[Path]], name: str, target: Path
) -> None:
    """Write the page of a comparison, report.html, into `target`, from report.json and the plots there.

    systems: of the first seed, whose captions the page shows; folders: the run folders of all seeds.
    """
    report = json.loads((target / "report.json").read_text(encoding="utf-8"))
    tables = score_tables(report["systems"]) + difference_tables(report["differences"])
    for title, section in (("Budget of one seed", "budget"), ("Stability", "stability")):
        tables.append(value_table(f"{title} (docs/metrics.md).", report[section]))
    config = systems["ce"].config
    published = published_figures(config.data.dataset, name.partition("_")[0])
    if published:
        tables.append(ReportTable("Published CIDEr", ["CIDEr"], {key: [figure] for key, figure in published.items()}))
    plots = {target / file: caption for file, caption in _COMPARISON_PLOTS.items()}
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    about = [*report["remarks"], f"Signature: {report['signatures']['score']}"]
    if len(folders["ce"]) > 1:
        about.insert(0, f"{len(folders['ce'])} seeds, ± is their standard deviation; images show seed {config.seed}")
    _write(systems, name, target / "report.html", tables, plots, lines, about)


def score_tables(systems: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """Build the tables of metrics, and of diversity and endings, from what `over_seeds` returns of each system."""
    first, *rest = systems.values()
    names = [name for name in first if all(name in table for table in rest)]
    metrics = [name for name in names if name in METRICS]
    means = {name: {label(key): table[name]["mean"] for key, table in systems.items()} for name in metrics}
    best = best_cells(means, lambda name, value: f"{100 * value:.1f}")
    rows = {label(key): [printed_score(table[name]) for name in metrics] for key, table in systems.items()}
    title = "Scores of decoded captions, times 100. The best value of each column is marked."
    tables = [ReportTable(title, metrics, rows, best)]
    others = [name for name in names if name not in METRICS]
    if others:
        title = "Diversity of sampled captions, and endings of the decoded ones (docs/metrics.md)."
        means = {key: {name: table[name]["mean"] for name in others} for key, table in systems.items()}
        tables.append(value_table(title, means))
    return tables


def difference_tables(pairs: Mapping[str, Mapping[str, dict]]) -> list[ReportTable]:
    """Build the table of what `differences` returns; none if there is no pair."""
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
        "Differences, times 100, with 95 % intervals of a paired bootstrap over images. Intervals cover the choice of "
        "images, not the variance of training; those that exclude 0 are marked."
    )
    return [ReportTable(title, metrics, rows, clear, mark="excludes 0")]


def value_table(title: str, systems: Mapping[str, Mapping[str, float]]) -> ReportTable:
    """Build a table of values by system and name."""
    names = list(next(iter(systems.values())))
    columns = {name: {label(key): values[name] for key, values in systems.items()} for name in names}
    rows = {label(key): [printed_number(name, values[name]) for name in names] for key, values in systems.items()}
    return ReportTable(title, names, rows, best_cells(columns, printed_number))


def best_cells(
    columns: Mapping[str, Mapping[str, float]], printed: Callable[[str, float], str]
) -> frozenset[tuple[str, str]]:
    """Find the cells (row, column) with the best printed value of their column; none if the whole column prints alike.

    columns: the value of each row, by metric. Metrics of which neither high nor low is better have no best.
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
    """List those of HISTORIES that any run has logged. lines: of metrics.jsonl, by system for each seed."""
    names = {name for seeds in lines.values() for rows in seeds for line in rows for name in line}
    return [name for name in HISTORIES if name in names]


def history_table(lines: Mapping[str, Sequence[Sequence[dict]]]) -> ReportTable:
    """Build the table of first and last values of each history, means over seeds: the curves as text."""
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
    plots: Mapping[Path, str],
    lines: Mapping[str, Sequence[Sequence[dict]]],
    about: Sequence[str],
) -> None:
    """Run the models on the gallery's images, and write the page. about: sentences without their full stops."""
    prepare_environment(convolutions=any(system.config.convolves for system in systems.values()))
    from src.runtime.device import setup_device

    config = next(iter(systems.values())).config
    setup_device(config)
    split, _, decoding = name.partition("_")
    pictures, images = build_gallery(systems, split, name)
    title = f"{listed([label(system) for system in systems])} on {config.data.dataset}, {split} split"
    intro = " ".join(f"{sentence}." for sentence in (f"{images:,} images, {decoding or 'greedy'} decoding", *about))
    histories = [history_table(lines)] if logged(lines) else []
    write_text(path, render_page(title, intro, tables, plots, histories, pictures, images))
