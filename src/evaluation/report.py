"""report.md: the scores of several runs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from src.config.schema import Config
from src.evaluation.files import read_evaluation, write_text
from src.models.folder import MODEL
from src.runtime.errors import InputError
from src.runtime.text_tables import markdown_table


class System(NamedTuple):
    """What a system was made with, the folder that holds its results, and the weights that made them."""

    config: Config
    folder: Path
    checkpoint: Path


def owning_folder(config: Config, checkpoint: Path) -> Path:
    """Where a checkpoint's results are written: the run folder that owns it, else one of its name in output_root.

    An exported folder has results under the folder's name, not its run's, whose own they would replace.
    """
    path = checkpoint.resolve()
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return Path(config.output_root, path.parent.name if path.name == MODEL else path.stem)


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
    """What `prism_rows` holds as a Markdown table; nothing: no text."""
    title, rows = prism_rows(results)
    if not rows:
        return ""
    systems = [system for system, result in results.items() if "prism" in result]
    return "\n".join(["", title, "", *markdown_table(["", *systems], [[n, *cells] for n, cells in rows.items()]), ""])


def prism_rows(results: Mapping[str, dict]) -> tuple[str, dict[str, list[str]]]:
    """A title, and Prism's scores of each system that has them: of all questions, of the best of K captions, and of
    each type of question. Times 100, with 95 % intervals.
    """
    found = [result["prism"] for result in results.values() if "prism" in result]
    if not found:
        return "", {}
    scores = {name: [prism[name] for prism in found] for name in ("mean", "best")}
    for name in found[0]["types"]:
        if all(name in prism["types"] for prism in found):
            scores[name] = [prism["types"][name] for prism in found]
    rows = {
        name: ["{value:.1f} [{low:.1f}, {high:.1f}]".format(**_percent(value)) for value in values]
        for name, values in scores.items()
    }
    captions, questions = found[0]["captions_per_image"], found[0]["questions"]
    return f"Questions answered from each of {captions} sampled captions, of {questions} (docs/metrics.md).", rows


def _percent(score: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * score[name] for name in ("value", "low", "high")}


def common_signature(results: Iterable[dict]) -> str:
    """The signature of results that stand in one table. Errors: InputError where they were not made alike."""
    results = list(results)
    signatures = sorted({result["signature"] for result in results})
    examiners = sorted({result["prism"].get("examined_by", "unknown") for result in results if "prism" in result})
    for made_by in (signatures, examiners):
        if len(made_by) > 1:
            raise InputError(f"scores that were made differently cannot stand in one table: {' and '.join(made_by)}")
    return signatures[0]


def remarks(results: Mapping[str, Sequence[dict]]) -> list[str]:
    """What a reader of one table must know, a line each: notes, metrics that failed, and why, and those that some lack.

    results: as eval_<split>.json holds them, of each system.
    """
    every = [result for seeds in results.values() for result in seeds]
    lines = dict.fromkeys(note for result in every for note in result.get("notes", ()))
    failures: dict[str, list[str]] = {}  # systems by what failed, and why
    for system, seeds in results.items():
        for name, reason in (failure for result in seeds for failure in result.get("left_out", {}).items()):
            failures.setdefault(f"{name} is left out: {reason}", []).append(system)
    lines |= {f"{failure} ({', '.join(dict.fromkeys(systems))})": None for failure, systems in failures.items()}
    tables = [result["metrics"].keys() for result in every]
    partial = sorted(set().union(*tables) - set(tables[0]).intersection(*tables))
    if partial:
        lines[f"Left out, since not every run has it: {', '.join(partial)}"] = None
    return list(lines)


def write_report(folders: Mapping[str, Path], path: Path, name: str) -> str:
    """Write the report of the runs in `folders` (by system), and return it.

    Errors: InputError where a run has no eval_<name>.json, where the scores were not made alike, or naming `path`.
    """
    results = {system: read_evaluation(folder, name) for system, folder in folders.items()}
    line = common_signature(results.values())
    title = f"{' and '.join(results)} on the {name.partition('_')[0]} split"
    said = "".join(f"\n{remark}.\n" for remark in remarks({system: [result] for system, result in results.items()}))
    report = f"# {title}\n\n{metrics_table(results)}\n{said}{prism_table(results)}\nSignature: `{line}`\n"
    write_text(path, report)
    return report
