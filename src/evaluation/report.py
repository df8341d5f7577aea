"""Write report.md: the scores of several runs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from src.config.schema import Config
from src.evaluation.report_tables import ReportTable
from src.evaluation.result_files import read_evaluation, write_text
from src.models.folder import MODEL
from src.runtime.errors import InputError
from src.runtime.text_tables import markdown_table


class System(NamedTuple):
    """The configuration of a system, the folder of its results, and the weights that made them."""

    config: Config
    folder: Path
    checkpoint: Path


def owning_folder(config: Config, checkpoint: Path) -> Path:
    """Return the folder for a checkpoint's results: the run folder that owns it, else one of its name in output_root.

    Results of an exported folder are named after the folder, so that they do not replace those of its run.
    """
    path = checkpoint.resolve()
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return Path(config.output_root, path.parent.name if path.name == MODEL else path.stem)


def partial_metrics(results: Iterable[dict]) -> list[str]:
    """List the metrics that only some results have."""
    tables = [set(result["metrics"]) for result in results]
    return sorted(set().union(*tables) - set.intersection(*tables))


def metrics_table(results: Mapping[str, dict]) -> str:
    """Build a Markdown table of the metrics that all results (eval_<split>.json, by system) have, times 100."""
    partial = partial_metrics(results.values())
    metrics = [name for name in next(iter(results.values()))["metrics"] if name not in partial]
    rows = [[key, *[f"{100 * result['metrics'][name]:.1f}" for name in metrics]] for key, result in results.items()]
    return "\n".join(markdown_table(["", *metrics], rows))


def prism_tables(results: Mapping[str, dict]) -> list[ReportTable]:
    """Build the table of Prism's scores, times 100, with 95 % intervals, of the systems that have any."""
    found = {system: result["prism"] for system, result in results.items() if "prism" in result}
    if not found:
        return []
    scores = [{"mean": prism["mean"], "best": prism["best"]} | prism["types"] for prism in found.values()]
    rows: dict[str, list[str]] = {}
    for name in scores[0]:
        if all(name in row for row in scores):
            values = [[100 * row[name][key] for key in ("value", "low", "high")] for row in scores]
            rows[name] = ["{:.1f} [{:.1f}, {:.1f}]".format(*value) for value in values]
    captions, questions = (next(iter(found.values()))[key] for key in ("captions_per_image", "questions"))
    title = f"Questions answered from each of {captions} sampled captions, of {questions} (docs/metrics.md)."
    return [ReportTable(title, list(found), rows, of_systems=False)]


def common_signature(results: Iterable[dict]) -> str:
    """Return the signature that results in one table share. Errors: InputError if they were made differently."""
    results = list(results)
    signatures = sorted({result["signature"] for result in results})
    examiners = sorted({result["prism"].get("examined_by", "unknown") for result in results if "prism" in result})
    for made_by in (signatures, examiners):
        if len(made_by) > 1:
            raise InputError(
                f"scores in one table were made differently: {' and '.join(made_by)}; evaluate the runs again"
            )
    return signatures[0]


def remarks(results: Mapping[str, Sequence[dict]]) -> list[str]:
    """List what a reader of one table must know: notes, metrics that failed, with reasons, and metrics that some lack.

    results: of eval_<split>.json, for each seed of each system.
    """
    every = [result for seeds in results.values() for result in seeds]
    lines = dict.fromkeys(note for result in every for note in result.get("notes", ()))
    failures: dict[str, list[str]] = {}  # systems by what failed, and why
    for system, seeds in results.items():
        for name, reason in (failure for result in seeds for failure in result.get("left_out", {}).items()):
            failures.setdefault(f"{name} is left out: {reason}", []).append(system)
    lines |= {f"{failure} ({', '.join(dict.fromkeys(systems))})": None for failure, systems in failures.items()}
    if partial := partial_metrics(every):
        lines[f"Left out, since not every run has it: {', '.join(partial)}"] = None
    return list(lines)


def write_report(folders: Mapping[str, Path], path: Path, name: str) -> str:
    """Write the report of the runs in `folders` (by system), and return it.

    Errors: InputError if a run has no eval_<name>.json, if scores were made differently, or if `path` is not writable.
    """
    results = {system: read_evaluation(folder, name) for system, folder in folders.items()}
    line = common_signature(results.values())
    title = f"{' and '.join(results)} on the {name.partition('_')[0]} split"
    said = "".join(f"\n{remark}.\n" for remark in remarks({system: [result] for system, result in results.items()}))
    prism = "".join("\n".join(["", *table.markdown(), ""]) for table in prism_tables(results))
    report = f"# {title}\n\n{metrics_table(results)}\n{said}{prism}\nSignature: `{line}`\n"
    write_text(path, report)
    return report
