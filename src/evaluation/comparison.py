"""The report of a comparison: scores over seeds, paired intervals, budgets, stability, and plots.

A system is CE or one RL method; its runs differ in their seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import yaml

from src.config.plan import Plan
from src.config.schema import Config
from src.evaluation.bootstrap import average_seeds, paired_differences, whole_split
from src.evaluation.files import read_arrays, read_evaluation, results_name, write_json, write_text
from src.evaluation.plots import plot_curves, plot_learning, plot_quality_diversity
from src.evaluation.report import common_signature, remarks
from src.evaluation.tables import comparison_tables
from src.rewards.mixture import reward_signature
from src.runtime.errors import InputError
from src.training.metrics import read_lines

PUBLISHED = Path(__file__).parents[2] / "docs" / "published_results.yaml"
_SEGMENTS = {"bleu": "Bleu_1", "meteor": "METEOR"}  # segments that a metric of another name is computed from
EQUAL_UPDATES = "_equal_updates"  # ends the name of a system that was given updates, not captions


class Results(NamedTuple):
    """What eval.py wrote, by system for each seed; left_out: metrics that only some runs have, and that are no more;
    remarks: of src.evaluation.report.
    """

    evaluations: dict[str, list[dict]]
    segments: dict[str, list[dict[str, np.ndarray]]]
    left_out: list[str]
    remarks: list[str]
    signature: str


def read_results(folders: Mapping[str, Sequence[Path]], name: str) -> Results:
    """The results of `folders` (system -> run folder of each seed), with the metrics that all of them have.

    name: of `results_name`. Errors: InputError where a run has not been evaluated, or not as the others.
    """
    evaluations = {system: [read_evaluation(folder, name) for folder in runs] for system, runs in folders.items()}
    line = common_signature(result for results in evaluations.values() for result in results)
    segments = {
        system: [read_arrays(folder / f"segments_{name}.npz") for folder in runs] for system, runs in folders.items()
    }
    said = remarks(evaluations)
    return Results(evaluations, segments, drop_partial_metrics(evaluations, segments), said, line)


def write_comparison(
    folders: Mapping[str, Sequence[Path]], configs: Mapping[str, Config], target: Path, plan: Plan, split: str
) -> str:
    """Write report.md, report.json and PNG plots of `folders` (system -> run folder of each seed) into `target`.

    Returns the text of report.md. Errors: InputError where a run has not been evaluated, or not as the others.
    """
    target.mkdir(parents=True, exist_ok=True)
    evaluations, segments, left_out, said, line = read_results(folders, results_name(split, configs["ce"].eval))
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    report: dict[str, Any] = {
        "systems": {system: over_seeds(results) for system, results in evaluations.items()},
        "differences": differences(segments, plan.resamples),
        "budget": {system: budget(runs, configs[system]) for system, runs in lines.items() if system != "ce"},
        "stability": {system: stability(runs) for system, runs in lines.items() if system != "ce"},
        "left_out": left_out,
        "remarks": said,
        "signatures": {"score": line}
        | {system: reward_signature(config) for system, config in configs.items() if system != "ce"},
    }
    write_json(target / "report.json", report)
    plot_learning(lines, report["budget"], target)
    plot_curves(lines, target)
    plot_quality_diversity(evaluations, target)
    config, seeds = configs["ce"], len(plan.seeds)
    title = f"# {', '.join(configs)} on {config.data.dataset}, {split} split, {seeds} seed{'s' if seeds > 1 else ''}"
    rows = [title]
    for table in comparison_tables(report, published_figures(config.data.dataset, split)):
        rows += ["", *table.markdown()]
    rows += [line for remark in said for line in ("", f"{remark}.")]
    rows += ["", "Signatures:", "", *[f"- {system}: `{text}`" for system, text in report["signatures"].items()]]
    rows += ["", "![learning](learning.png) ![curves](curves.png) ![quality and diversity](quality_diversity.png)"]
    text = "\n".join(rows) + "\n"
    write_text(target / "report.md", text)
    return text


def drop_partial_metrics(
    evaluations: Mapping[str, Sequence[dict]], segments: Mapping[str, Sequence[dict[str, np.ndarray]]]
) -> list[str]:
    """Take out of both, in place, the metrics that only some runs have, and return their names."""
    tables = [result["metrics"] for results in evaluations.values() for result in results]
    partial = set().union(*tables) - set(tables[0]).intersection(*tables)
    for table in tables:
        for metric in partial & table.keys():
            del table[metric]
    for statistics in (statistics for seeds in segments.values() for statistics in seeds):
        for name in [name for name in statistics if _SEGMENTS.get(name, name) in partial]:
            del statistics[name]
    return sorted(partial)


def over_seeds(results: Sequence[dict]) -> dict[str, dict]:
    """Mean, standard deviation (0 for one seed) and values over seeds of every metric, diversity and endings."""
    table = {}
    for section in ("metrics", "diversity", "endings"):
        for name in results[0].get(section, {}):
            values = [result[section][name] for result in results]
            table[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": values}
    return table


def differences(segments: Mapping[str, Sequence[dict[str, np.ndarray]]], resamples: int) -> dict[str, dict]:
    """Every system minus CE, and GRPO minus every other of the same budget: `mean`, the ends of the interval, and each
    seed's difference, of every metric. segments: system -> segment statistics of each seed.
    """
    result = {}
    for ours in (name for name in segments if name != "ce"):
        for other in segments:
            same_budget = other.endswith(EQUAL_UPDATES) == ours.endswith(EQUAL_UPDATES)
            is_grpo = ours.removesuffix(EQUAL_UPDATES) == "grpo"
            if other == ours or (other != "ce" and not (is_grpo and same_budget)):
                continue
            pair = paired_differences(average_seeds(segments[ours]), average_seeds(segments[other]), resamples)
            seeds = [
                {name: mine[name] - theirs[name] for name in mine}
                for mine, theirs in zip(map(whole_split, segments[ours]), map(whole_split, segments[other]))
            ]
            result[f"{ours}-{other}"] = {
                name: values | {"seeds": [seed[name] for seed in seeds]} for name, values in pair.items()
            }
    return result


def budget(runs: Sequence[Sequence[dict]], config: Config) -> dict[str, float]:
    """What one seed of a system cost, mean over seeds: captions decoded, tokens updated, optimiser updates, seconds."""
    rl = config.rl
    updated = rl.rollout_images * rl.group_size * rl.passes
    tokens = [updated * sum(line.get("rollout/length_mean", 0.0) for line in lines) for lines in runs]
    return {
        "captions": rl.rollouts * config.captions_per_rollout,
        "token_updates": mean(tokens),
        "updates": rl.rollouts * config.updates_per_rollout,
        "seconds": mean(lines[-1]["time/total_s"] for lines in runs),
    }


def stability(runs: Sequence[Sequence[dict]]) -> dict[str, float]:
    """Means over seeds: variance of the advantages; variance of the gradient norm, and its standard deviation over its
    mean, which no scale of the advantages changes; largest fall of validation CIDEr below the highest so far.
    """
    advantage, gradient, relative, fall = [], [], [], []
    for lines in runs:
        advantage.append(mean(line["rollout/advantage_std"] ** 2 for line in lines if "rollout/advantage_std" in line))
        norms = np.array([line["train/grad_norm"] for line in lines if "train/grad_norm" in line])
        gradient.append(float(norms.var()))
        relative.append(float(norms.std() / norms.mean()))
        scores = np.array([line["val/CIDEr"] for line in lines if "val/CIDEr" in line])
        fall.append(float((np.maximum.accumulate(scores) - scores).max()))
    return {
        "advantage_variance": mean(advantage),
        "gradient_norm_variance": mean(gradient),
        "gradient_norm_relative_std": mean(relative),
        "largest_fall_of_val_CIDEr": mean(fall),
    }


def published_figures(dataset: str, split: str = "test") -> dict[str, str]:
    """CIDEr on a split of a dataset by system, with decoding and source, from docs/published_results.yaml.

    Errors: InputError where the file is damaged, or an entry lacks a key.
    """
    try:
        entries = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["results"]
        figures: dict[str, list[str]] = {}
        for entry in entries:
            system, value = entry["system"], entry["value"]
            if (entry["dataset"], entry["split"], entry["metric"]) == (dataset, split, "CIDEr") and value is not None:
                figures.setdefault(system, []).append(f"{value} ({entry['decoding']}; {entry['source']})")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{PUBLISHED}: {' '.join(repr(error).split())}: restore it, or complete the entry") from None
    return {system: ", ".join(lines) for system, lines in figures.items()}
