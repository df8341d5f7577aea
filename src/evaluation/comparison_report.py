"""Write the report of a comparison: scores over seeds, paired intervals, budgets, stability, and plots.

A system is CE or one RL method; its runs differ in their seed.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import yaml

from src.config.plan import Plan
from src.config.schema import Config
from src.evaluation.bootstrap import Segments, average_seeds, paired_differences, whole_split
from src.evaluation.plots import plot_curves, plot_learning, plot_quality_diversity
from src.evaluation.report import common_signature, partial_metrics, remarks
from src.evaluation.report_tables import comparison_tables, series
from src.evaluation.result_files import read_arrays, read_evaluation, results_name, write_json, write_text
from src.rewards.mixture import reward_signature
from src.runtime.errors import InputError
from src.training.metrics import read_lines

PUBLISHED = Path(__file__).parents[2] / "docs" / "published_results.yaml"
_SEGMENTS = {"Bleu_1": "bleu", "METEOR": "meteor"}  # segments that a metric of another name is computed from
EQUAL_UPDATES = "_equal_updates"  # ends the name of a system whose budget is updates, not captions


class Results(NamedTuple):
    """What eval.py wrote, by system for each seed. left_out: metrics that only some runs have; they are removed.

    remarks, signature: as in src.evaluation.report.
    """

    evaluations: dict[str, list[dict]]
    segments: dict[str, list[dict[str, np.ndarray]]]
    left_out: list[str]
    remarks: list[str]
    signature: str


def read_results(folders: Mapping[str, Sequence[Path]], name: str) -> Results:
    """Read the results of `folders` (system -> run folder of each seed), with the metrics that all of them have.

    name: as in `results_name`. Errors: InputError if a run was not evaluated, or differently from the others.
    """
    evaluations = {system: [read_evaluation(folder, name) for folder in runs] for system, runs in folders.items()}
    every = [result for results in evaluations.values() for result in results]
    line, said, partial = common_signature(every), remarks(evaluations), partial_metrics(every)
    segments = {
        system: [read_arrays(folder / f"segments_{name}.npz") for folder in runs] for system, runs in folders.items()
    }
    for table in (result["metrics"] for result in every):
        for metric in partial:
            table.pop(metric, None)
    for arrays in (arrays for seeds in segments.values() for arrays in seeds):
        for metric in partial:
            arrays.pop(_SEGMENTS.get(metric, metric), None)
    return Results(evaluations, segments, partial, said, line)


def write_comparison(
    folders: Mapping[str, Sequence[Path]], configs: Mapping[str, Config], target: Path, plan: Plan, split: str
) -> str:
    """Write report.md, report.json and PNG plots of `folders` (system -> run folder of each seed) into `target`.

    Returns the text of report.md. Errors: InputError if a run was not evaluated, or differently from the others.
    """
    target.mkdir(parents=True, exist_ok=True)
    results = read_results(folders, results_name(split, configs["ce"].eval))
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    rl = [system for system in lines if system != "ce"]
    report: dict[str, Any] = {
        "systems": {system: over_seeds(seeds) for system, seeds in results.evaluations.items()},
        "differences": differences(results.segments, plan.resamples),
        "budget": {system: budget(lines[system], configs[system]) for system in rl},
        "stability": {system: stability(lines[system]) for system in rl},
        "left_out": results.left_out,
        "remarks": results.remarks,
        "signatures": {"score": results.signature} | {system: reward_signature(configs[system]) for system in rl},
    }
    write_json(target / "report.json", report)
    plot_learning(lines, report["budget"], target)
    plot_curves(lines, target)
    plot_quality_diversity(results.evaluations, target)
    config, seeds = configs["ce"], len(plan.seeds)
    title = f"# {', '.join(configs)} on {config.data.dataset}, {split} split, {seeds} seed{'s' if seeds > 1 else ''}"
    rows = [title]
    for table in comparison_tables(report, published_figures(config.data.dataset, split)):
        rows += ["", *table.markdown()]
    rows += [line for remark in results.remarks for line in ("", f"{remark}.")]
    rows += ["", "Signatures:", "", *[f"- {system}: `{text}`" for system, text in report["signatures"].items()]]
    rows += ["", "![learning](learning.png) ![curves](curves.png) ![quality and diversity](quality_diversity.png)"]
    text = "\n".join(rows) + "\n"
    write_text(target / "report.md", text)
    return text


def over_seeds(results: Sequence[dict]) -> dict[str, dict]:
    """Compute mean, standard deviation (0 for one seed) and values of every metric, diversity and ending."""
    table = {}
    for section in ("metrics", "diversity", "endings"):
        for name in results[0].get(section, {}):
            values = [result[section][name] for result in results]
            table[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": values}
    return table


def differences(segments: Mapping[str, Sequence[Segments]], resamples: int) -> dict[str, dict]:
    """Compute every system minus CE, and GRPO minus every other of the same budget, for every metric.

    segments: system -> segment statistics of each seed. Returns `mean`, `low`, `high`, and each seed's difference.
    """
    result = {}
    whole = {system: [whole_split(seed) for seed in seeds] for system, seeds in segments.items()}
    for ours, other in permutations(segments, 2):
        same_budget = other.endswith(EQUAL_UPDATES) == ours.endswith(EQUAL_UPDATES)
        is_grpo = ours.removesuffix(EQUAL_UPDATES) == "grpo"
        if ours != "ce" and (other == "ce" or (is_grpo and same_budget)):
            pair = paired_differences(average_seeds(segments[ours]), average_seeds(segments[other]), resamples)
            for name, values in pair.items():
                values["seeds"] = [mine[name] - theirs[name] for mine, theirs in zip(whole[ours], whole[other])]
            result[f"{ours}-{other}"] = pair
    return result


def budget(runs: Sequence[Sequence[dict]], config: Config) -> dict[str, float]:
    """Compute what one seed cost, mean over seeds: captions decoded, tokens updated, optimiser updates, seconds."""
    rl = config.rl
    updated = rl.rollout_images * rl.group_size * rl.passes
    return {
        "captions": rl.rollouts * config.captions_per_rollout,
        "token_updates": mean(updated * float(series(lines, "rollout/length_mean")[1].sum()) for lines in runs),
        "updates": rl.rollouts * config.updates_per_rollout,
        "seconds": mean(lines[-1]["time/total_s"] for lines in runs),
    }


def stability(runs: Sequence[Sequence[dict]]) -> dict[str, float]:
    """Average over seeds: variance of the advantages; variance of the gradient norm, and its standard deviation over
    its mean, which no scale of the advantages changes; largest fall of validation CIDEr below the highest so far.
    """
    seeds = []
    for lines in runs:
        deviations, norms, scores = (
            series(lines, name)[1] for name in ("rollout/advantage_std", "train/grad_norm", "val/CIDEr")
        )
        fall = (np.maximum.accumulate(scores) - scores).max()
        seeds.append([(deviations**2).mean(), norms.var(), norms.std() / norms.mean(), fall])
    names = ("advantage_variance", "gradient_norm_variance", "gradient_norm_relative_std", "largest_fall_of_val_CIDEr")
    return dict(zip(names, np.mean(seeds, 0).tolist()))


def published_figures(dataset: str, split: str = "test") -> dict[str, str]:
    """Read CIDEr on a split of a dataset by system, with decoding and source, from docs/published_results.yaml.

    Errors: InputError if the file is damaged, or an entry lacks a key.
    """
    try:
        entries = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["results"]
        figures: dict[str, list[str]] = {}
        for entry in entries:
            system, value = entry["system"], entry["value"]
            if (entry["dataset"], entry["split"], entry["metric"]) == (dataset, split, "CIDEr") and value is not None:
                figures.setdefault(system, []).append(f"{value} ({entry['decoding']}; {entry['source']})")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f"{PUBLISHED}: {' '.join(repr(error).split())}; restore the file or complete the entry"
        ) from None
    return {system: ", ".join(lines) for system, lines in figures.items()}
