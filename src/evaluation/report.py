"""report.md: the scores of several runs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from src.config import Config
from src.errors import InputError
from src.evaluation.files import read_evaluation


def owning_folder(config: Config, checkpoint: Path) -> Path:
    """The run folder that owns a checkpoint, where results are written; else the configuration's."""
    owner = checkpoint.resolve().parent
    return owner.parent if owner.name == "checkpoints" else config.run_folder


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, numbers to the right of the first column."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def metrics_table(results: Mapping[str, dict]) -> str:
    """A Markdown table of results as eval_<split>.json holds them, by system; metrics times 100, as papers print."""
    metrics = list(next(iter(results.values()))["metrics"])
    rows = [
        [system, *[f"{100 * result['metrics'][name]:.1f}" for name in metrics]] for system, result in results.items()
    ]
    return "\n".join(markdown_table(["", *metrics], rows))


def write_report(folders: Mapping[str, Path], target: Path, split: str) -> str:
    """Write report.md of the runs in `folders` (by system) into the folder `target`, and return it.

    Errors: InputError where a run has no eval_<split>.json, or where the scores were not made alike.
    """
    results = {system: read_evaluation(folder, split) for system, folder in folders.items()}
    signatures = {result["signature"] for result in results.values()}
    if len(signatures) > 1:
        raise InputError(
            f"scores that were made differently cannot stand in one table: {' and '.join(sorted(signatures))}"
        )
    title = " and ".join(results)
    report = f"# {title} on the {split} split\n\n{metrics_table(results)}\n\nSignature: `{signatures.pop()}`\n"
    (target / "report.md").write_text(report, encoding="utf-8")
    return report
