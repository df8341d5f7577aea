"""Write report.html, one file beside report.md: scores with best values and intervals, curves, a gallery of images.

It is written last: this process runs the models on the gallery's images after training and evaluation have ended.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.evaluation.comparison_report import differences, over_seeds, published_figures, read_results
from src.evaluation.gallery import Gallery, build_gallery
from src.evaluation.html import label, listed, render_page
from src.evaluation.plots import plot_histories, plot_quality_diversity
from src.evaluation.prism import RESAMPLES
from src.evaluation.report import System, prism_tables
from src.evaluation.report_tables import comparison_tables, difference_tables, history_tables, logged, score_tables
from src.evaluation.result_files import write_text
from src.runtime.environment import prepare_environment
from src.training.metrics import read_lines

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
    tables += [table._replace(columns=list(map(label, table.columns))) for table in prism_tables(only)]
    lines = {stage: [read_lines(system.folder / "metrics.jsonl")] for stage, system in systems.items()}
    plots = {}
    if logged(lines):
        file = path.with_name("histories.png")
        plot_histories({label(stage): seeds for stage, seeds in lines.items()}, file)
        plots[file] = "Histories of each stage against its updates."
    if all("diversity" in evaluation for evaluation in only.values()):
        plot_quality_diversity(results.evaluations, path.parent)
        plots[path.with_name("quality_diversity.png")] = _QUALITY
    title, intro, gallery = _start(systems, name, [*results.remarks, f"Signature: {results.signature}"])
    write_text(path, render_page(title, intro, tables, plots, history_tables(lines), gallery))


def write_comparison_page(
    systems: Mapping[str, System], folders: Mapping[str, Sequence[Path]], name: str, target: Path
) -> None:
    """Write the page of a comparison, report.html, into `target`, from report.json and the plots there.

    systems: of the first seed, whose captions the page shows; folders: the run folders of all seeds.
    """
    report = json.loads((target / "report.json").read_text(encoding="utf-8"))
    config = systems["ce"].config
    tables = comparison_tables(report, published_figures(config.data.dataset, name.partition("_")[0]))
    plots = {target / file: caption for file, caption in _COMPARISON_PLOTS.items()}
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    about = [*report["remarks"], f"Signature: {report['signatures']['score']}"]
    if len(folders["ce"]) > 1:
        about.insert(0, f"{len(folders['ce'])} seeds, ± is their standard deviation; images show seed {config.seed}")
    title, intro, gallery = _start(systems, name, about)
    write_text(target / "report.html", render_page(title, intro, tables, plots, history_tables(lines), gallery))


def _start(systems: Mapping[str, System], name: str, about: Sequence[str]) -> tuple[str, str, Gallery]:
    """Run the models on the gallery's images; return title, introduction and gallery. about: sentences without dots."""
    prepare_environment(convolutions=any(system.config.convolves for system in systems.values()))
    from src.runtime.device import setup_device

    config = next(iter(systems.values())).config
    setup_device(config)
    split, _, decoding = name.partition("_")
    gallery = build_gallery(systems, split, name)
    title = f"{listed([label(system) for system in systems])} on {config.data.dataset}, {split} split"
    sentences = (f"{gallery.images:,} images, {decoding or 'greedy'} decoding", *about)
    return title, " ".join(f"{sentence}." for sentence in sentences), gallery
