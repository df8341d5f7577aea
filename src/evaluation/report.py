"""report.md: the scores of several runs side by side."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from src.config import Config
from src.errors import InputError
from src.evaluation.files import read_evaluation
from src.tables import markdown_table


def owning_folder(config: Config, checkpoint: Path) -> Path:
    """The run folder that owns a checkpoint, where results are written; else the configuration's."""
    owner = checkpoint.resolve().parent
    return owner.parent if owner.name == "checkpoints" else config.run_folder


def metrics_table(results: Mapping[str, dict]) -> str:
    """A Markdown table of results as eval_<split>.json holds them, by system; metrics times 100, as papers print.

    It has the metrics that all of them have.
    """
    common = set.intersection(*(set(result["metrics"]) for result in results.values()))
    metrics = [name for name in next(iter(results.values()))["metrics"] if name in common]
    rows = [
        [system, *[f"{100 * result['metrics'][name]:.1f}" for name in metrics]] for system, result in results.items()
    ]
    return "\n".join(markdown_table(["", *metrics], rows))


def prism_table(results: Mapping[str, dict]) -> str:
    """Prism scores by system as a Markdown table: all questions, the best of K captions, and each type of question.

    Times 100, with 95 % intervals. Results without Prism are left out; none: no text.
    """
    found = {system: result["prism"] for system, result in results.items() if "prism" in result}
    if not found:
        return ""
    first = next(iter(found.values()))
    scores = {"mean": lambda prism: prism["mean"], "best": lambda prism: prism["best"]}
    scores |= {
        name: lambda prism, name=name: prism["types"][name]
        for name in first["types"]
        if all(name in prism["types"] for prism in found.values())
    }
    rows = [
        [name, *["{value:.1f} [{low:.1f}, {high:.1f}]".format(**_percent(score(prism))) for prism in found.values()]]
        for name, score in scores.items()
    ]
    captions, questions = first["captions_per_image"], first["questions"]
    title = f"Questions answered from each of {captions} sampled captions, of {questions} (docs/metrics.md)."
    return "\n".join(["", title, "", *markdown_table(["", *found], rows), ""])


def _percent(score: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * score[name] for name in ("value", "low", "high")}


def common_signature(results: Iterable[dict]) -> str:
    """The signature of results that stand in one table. Errors: InputError where they were not made alike."""
    signatures = sorted({result["signature"] for result in results})
    if len(signatures) > 1:
        raise InputError(f"scores that were made differently cannot stand in one table: {' and '.join(signatures)}")
    return signatures[0]


def write_report(folders: Mapping[str, Path], target: Path, name: str) -> str:
    """Write report.md of the runs in `folders` (by system) into the folder `target`, and return it.

    Errors: InputError where a run has no eval_<name>.json, or where the scores were not made alike.
    """
    results = {system: read_evaluation(folder, name) for system, folder in folders.items()}
    line = common_signature(results.values())
    title = f"{' and '.join(results)} on the {name.partition('_')[0]} split"
    report = f"# {title}\n\n{metrics_table(results)}\n{prism_table(results)}\nSignature: `{line}`\n"
    (target / "report.md").write_text(report, encoding="utf-8")
    return report
