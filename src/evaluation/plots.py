"""Plots of runs and of their comparison, as PNG files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display
from matplotlib import pyplot as plt

BINS = 40  # of a curve: single updates are too noisy to compare by eye

HISTORIES = ("val/CIDEr", "rollout/reward_mean", "rollout/length_mean", "train/entropy", "train/kl", "train/loss")

Runs = Mapping[str, Sequence[Sequence[dict]]]  # system -> lines of metrics.jsonl of each seed


def plot_learning(runs: Runs, budget: Mapping[str, Mapping[str, float]], target: Path) -> None:
    """learning.png: validation CIDEr against decoded captions and against seconds of sampling, reward and updates."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for color, system, seeds in _rl_systems(runs):
        captions_per_step = budget[system]["captions"] / budget[system]["updates"]
        for seed, lines in enumerate(seeds):
            steps, scores = series(lines, "val/CIDEr")
            label = system if seed == 0 else None
            axes[0].plot(steps * captions_per_step, 100 * scores, color=color, label=label, alpha=0.7)
            seconds = [line["time/total_s"] for line in lines if "val/CIDEr" in line]
            axes[1].plot(seconds, 100 * scores, color=color, alpha=0.7)
    axes[0].set(xlabel="decoded captions", ylabel="validation CIDEr")
    axes[1].set(xlabel="seconds of sampling, reward and updates")
    axes[0].legend()
    _save(figure, target / "learning.png")


def plot_curves(runs: Runs, target: Path) -> None:
    """curves.png: reward, KL against the CE policy, entropy and length against the share of the run; means of its
    40ths.
    """
    names = ("rollout/reward_mean", "train/kl", "train/entropy", "rollout/length_mean")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    axes = axes.flat
    for axis, name in zip(axes, names):
        for color, system, seeds in _rl_systems(runs):
            for seed, lines in enumerate(seeds):
                steps, values = binned(*series(lines, name))
                label = system if seed == 0 else None
                axis.plot(steps / max(1, steps.max(initial=0)), values, color=color, label=label, alpha=0.7)
        axis.set(xlabel="share of the run", ylabel=name)
    axes[0].legend()
    _save(figure, target / "curves.png")


def plot_histories(runs: Mapping[str, Sequence[dict]], path: Path) -> None:
    """What of HISTORIES the stages of one run have logged, against the updates of each; means of 40ths.

    runs: lines of metrics.jsonl by stage.
    """
    names = [name for name in HISTORIES if any(name in line for lines in runs.values() for line in lines)]
    figure, axes = plt.subplots(-(-len(names) // 3), 3, figsize=(13, 3.6 * -(-len(names) // 3)), squeeze=False)
    for axis, name in zip(axes.flat, names):
        for number, (stage, lines) in enumerate(runs.items()):
            steps, values = binned(*series(lines, name))
            if len(steps):
                axis.plot(steps, values, color=f"C{number}", label=stage, marker="." if len(steps) < 15 else None)
        axis.set(xlabel="updates", ylabel=name)
        axis.legend()
    for axis in axes.flat[len(names) :]:
        axis.remove()
    _save(figure, path)


def plot_quality_diversity(evaluations: Mapping[str, Sequence[dict]], target: Path) -> None:
    """quality_diversity.png: CIDEr of greedy captions against self-CIDEr of samples, one point per seed."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for number, (system, results) in enumerate(evaluations.items()):
        known = [result for result in results if "diversity" in result and "CIDEr" in result["metrics"]]
        x = [result["diversity"]["self-CIDEr"] for result in known]
        axis.scatter(x, [100 * result["metrics"]["CIDEr"] for result in known], color=f"C{number}", label=system)
    axis.set(xlabel="self-CIDEr of samples (diversity)", ylabel="CIDEr of greedy captions")
    axis.legend()
    _save(figure, target / "quality_diversity.png")


def series(lines: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one logged name."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and of y over BINS runs of neighbours of about the same length; what is shorter stays as it is."""
    bins = min(BINS, len(x))
    if bins == 0:
        return x, y
    mean_x, mean_y = (np.array([part.mean() for part in np.array_split(values, bins)]) for values in (x, y))
    return mean_x, mean_y


def _rl_systems(runs: Runs) -> Iterator[tuple[str, str, Sequence[Sequence[dict]]]]:
    """Colour, name and seeds of every system but CE; a system has one colour in all plots."""
    for number, (system, seeds) in enumerate(runs.items()):
        if system != "ce":
            yield f"C{number}", system, seeds


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
