"""The report of a comparison: scores over seeds, paired intervals, budgets, stability, and plots.

A system is CE or one RL method; its runs differ in their seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import yaml

from src.config import Config
from src.config_plan import Plan
from src.evaluation.bootstrap import average_seeds, paired_differences
from src.evaluation.files import read_evaluation, write_json
from src.evaluation.plots import plot_curves, plot_learning, plot_quality_diversity
from src.evaluation.report import markdown_table
from src.rewards.caption_reward import reward_signature
from src.training.metrics import read_lines

PUBLISHED = Path("docs/published_results.yaml")


def write_comparison(
    folders: Mapping[str, Sequence[Path]], configs: Mapping[str, Config], target: Path, plan: Plan
) -> str:
    """Write report.md, report.json and PNG plots of `folders` (system -> run folder of each seed) into `target`.

    Returns the text of report.md. Errors: InputError where a run has not been evaluated.
    """
    target.mkdir(parents=True, exist_ok=True)
    evaluations = {system: [read_evaluation(folder, "test") for folder in runs] for system, runs in folders.items()}
    lines = {system: [read_lines(folder / "metrics.jsonl") for folder in runs] for system, runs in folders.items()}
    report = {
        "systems": {system: over_seeds(results) for system, results in evaluations.items()},
        "differences": differences(folders, plan.resamples),
        "budget": {system: budget(runs, configs[system]) for system, runs in lines.items() if system != "ce"},
        "stability": {system: stability(runs) for system, runs in lines.items() if system != "ce"},
        "signatures": {"score": evaluations["ce"][0]["signature"]}
        | {system: reward_signature(config) for system, config in configs.items() if system != "ce"},
    }
    write_json(target / "report.json", report)
    plot_learning(lines, report["budget"], target)
    plot_curves(lines, target)
    plot_quality_diversity(evaluations, target)
    text = markdown(report, next(iter(configs.values())), len(plan.seeds))
    (target / "report.md").write_text(text, encoding="utf-8")
    return text


def over_seeds(results: Sequence[dict]) -> dict[str, dict]:
    """Mean, standard deviation (0 for one seed) and values over seeds of every metric, diversity and endings."""
    table = {}
    for section in ("metrics", "diversity", "endings"):
        for name in results[0].get(section, {}):
            values = [result[section][name] for result in results]
            table[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": values}
    return table


def differences(folders: Mapping[str, Sequence[Path]], resamples: int) -> dict[str, dict]:
    """GRPO minus every other system of the same budget: mean and 95 % interval of each metric, and of each seed."""
    segments = {}
    for system, runs in folders.items():
        segments[system] = []
        for folder in runs:
            with np.load(folder / "segments_test.npz", allow_pickle=False) as file:
                segments[system].append(dict(file))
    result = {}
    for ours in ("grpo", "grpo_equal_updates"):
        if ours not in segments:
            continue
        suffix = ours.removeprefix("grpo")
        others = [name for name in segments if name != ours and (name == "ce" or name.endswith(suffix or name))]
        for other in others:
            if other != "ce" and other.endswith("_equal_updates") != bool(suffix):
                continue
            interval = paired_differences(
                average_seeds(segments[ours]), average_seeds(segments[other]), resamples=resamples
            )
            for name, values in interval.items():
                values["seeds"] = [
                    paired_differences(mine, theirs, resamples=1)[name]["mean"]
                    for mine, theirs in zip(segments[ours], segments[other])
                ]
            result[f"{ours}-{other}"] = interval
    return result


def budget(runs: Sequence[Sequence[dict]], config: Config) -> dict[str, float]:
    """What one seed of a system cost: captions decoded, tokens updated, optimiser updates, and mean seconds."""
    grpo = config.grpo
    rows = grpo.group_size + (config.advantage.baseline == "greedy")
    trained_rows = grpo.rollout_images * grpo.group_size
    seconds = [
        sum(line.get(name, 0.0) for line in lines for name in ("time/rollout_s", "time/reward_s", "time/update_s"))
        for lines in runs
    ]
    return {
        "captions": grpo.rollouts * grpo.rollout_images * rows,
        "token_updates": grpo.rollouts * grpo.passes * trained_rows * grpo.tokens,
        "updates": grpo.rollouts * grpo.passes * (grpo.rollout_images // grpo.update_images),
        "seconds": mean(seconds),
    }


def stability(runs: Sequence[Sequence[dict]]) -> dict[str, float]:
    """Means over seeds: variance of the advantages, variance of the gradient norm, largest fall of validation CIDEr.

    A fall is the distance from the highest score so far.
    """
    advantage, gradient, fall = [], [], []
    for lines in runs:
        advantage.append(mean(line["rollout/advantage_std"] ** 2 for line in lines if "rollout/advantage_std" in line))
        gradient.append(float(np.var([line["train/grad_norm"] for line in lines if "train/grad_norm" in line])))
        scores = np.array([line["val/CIDEr"] for line in lines if "val/CIDEr" in line])
        fall.append(float((np.maximum.accumulate(scores) - scores).max()))
    return {
        "advantage_variance": mean(advantage),
        "gradient_norm_variance": mean(gradient),
        "largest_fall_of_val_CIDEr": mean(fall),
    }


def markdown(report: dict, config: Config, seeds: int) -> str:
    """report.md: every section of report.json as a table, metrics times 100."""
    systems, rows = report["systems"], []
    metrics = [name for name in systems["ce"] if name in ("METEOR", "ROUGE_L", "CIDEr", "SPICE") or "Bleu" in name]
    others = [name for name in systems["ce"] if name not in metrics]
    rows += [f"# {', '.join(systems)} on {config.data.dataset}, test split, {seeds} seeds", ""]
    rows += ["Mean and standard deviation over seeds; metrics times 100.", ""]
    rows += _table(
        metrics,
        {
            system: [f"{100 * table[name]['mean']:.1f} ± {100 * table[name]['std']:.1f}" for name in metrics]
            for system, table in systems.items()
        },
    )
    if others:
        rows += ["", "Diversity of sampled captions, and endings of the greedy ones.", ""]
        rows += _table(others, {s: [f"{table[name]['mean']:.3f}" for name in others] for s, table in systems.items()})
    rows += ["", "Differences: mean [95 % interval of a paired bootstrap over images] (each seed); times 100. An"]
    rows += ["interval covers the choice of test images, not the variance of training.", ""]
    rows += _table(
        metrics,
        {
            pair: [
                f"{100 * v['mean']:+.1f} [{100 * v['low']:+.1f}, {100 * v['high']:+.1f}] "
                f"({', '.join(f'{100 * seed:+.1f}' for seed in v['seeds'])})"
                for v in (interval[name] for name in metrics)
            ]
            for pair, interval in report["differences"].items()
        },
    )
    for title, section in (("Budget of one seed", "budget"), ("Stability", "stability")):
        names = list(next(iter(report[section].values())))
        rows += ["", f"{title}.", ""]
        rows += _table(names, {s: [f"{values[name]:,.4g}" for name in names] for s, values in report[section].items()})
    rows += ["", *published(config.data.dataset), "", "Signatures:", ""]
    rows += [f"- {system}: `{line}`" for system, line in report["signatures"].items()]
    rows += ["", "![learning](learning.png) ![curves](curves.png) ![quality and diversity](quality_diversity.png)"]
    return "\n".join(rows) + "\n"


def published(dataset: str) -> list[str]:
    """A table of published figures on a dataset, from docs/published_results.yaml; empty where there is none."""
    entries = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["results"] if PUBLISHED.is_file() else []
    entries = [entry for entry in entries if entry["dataset"] == dataset and entry["value"] is not None]
    if not entries:
        return []
    names = ("split", "decoding", "metric", "value", "source")
    return ["Published figures.", "", *_table(names, {e["system"]: [str(e[name]) for name in names] for e in entries})]


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    return markdown_table(["", *columns], [[name, *cells] for name, cells in rows.items()])
