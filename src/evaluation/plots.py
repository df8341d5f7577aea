"""Plot runs and their comparison, as PNG files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display
from matplotlib import pyplot as plt

from src.evaluation.report_tables import Runs, logged, series

BINS = 40  # of a curve: single updates are too noisy to compare by eye


def plot_learning(runs: Runs, budget: Mapping[str, Mapping[str, float]], target: Path) -> None:
    """Plot learning.png: validation CIDEr against decoded captions and against seconds of training."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for system, lines, style in _rl_runs(runs):
        steps, scores = series(lines, "val/CIDEr")
        axes[0].plot(steps * budget[system]["captions"] / budget[system]["updates"], 100 * scores, **style)
        axes[1].plot([line["time/total_s"] for line in lines if "val/CIDEr" in line], 100 * scores, **style)
    axes[0].set(xlabel="decoded captions", ylabel="validation CIDEr")
    axes[1].set(xlabel="seconds of sampling, reward and updates")
    axes[0].legend()
    _save(figure, target / "learning.png")


def plot_curves(runs: Runs, target: Path) -> None:
    """Plot curves.png: reward, KL, entropy and length against the share of the run, averaged in BINS."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    names = ("rollout/reward_mean", "train/kl", "train/entropy", "rollout/length_mean")
    for axis, name in zip(axes.flat, names):
        for _, lines, style in _rl_runs(runs):
            steps, values = binned(*series(lines, name))
            axis.plot(steps / max(1, steps.max(initial=0)), values, **style)
        axis.set(xlabel="share of the run", ylabel=name)
    axes.flat[0].legend()
    _save(figure, target / "curves.png")


def plot_histories(runs: Runs, path: Path) -> None:
    """Plot the `logged` histories of the stages of one run against the updates of each, averaged in BINS."""
    names = logged(runs)
    figure, axes = plt.subplots(-(-len(names) // 3), 3, figsize=(13, 3.6 * -(-len(names) // 3)), squeeze=False)
    for axis, name in zip(axes.flat, names):
        for number, (stage, (lines,)) in enumerate(runs.items()):
            steps, values = binned(*series(lines, name))
            if len(steps):
                axis.plot(steps, values, color=f"C{number}", label=stage, marker="." if len(steps) < 15 else None)
        axis.set(xlabel="updates", ylabel=name)
        axis.legend()
    for axis in axes.flat[len(names) :]:
        axis.remove()
    _save(figure, path)


def plot_quality_diversity(evaluations: Mapping[str, Sequence[dict]], target: Path) -> None:
    """Plot quality_diversity.png: CIDEr of greedy captions against self-CIDEr of samples, one point per seed."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for number, (system, results) in enumerate(evaluations.items()):
        known = [result for result in results if "diversity" in result and "CIDEr" in result["metrics"]]
        x = [result["diversity"]["self-CIDEr"] for result in known]
        axis.scatter(x, [100 * result["metrics"]["CIDEr"] for result in known], color=f"C{number}", label=system)
    axis.set(xlabel="self-CIDEr of samples (diversity)", ylabel="CIDEr of greedy captions")
    axis.legend()
    _save(figure, target / "quality_diversity.png")


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average x and y over at most BINS runs of neighbours of about the same length."""
    bins = min(BINS, len(x))
    if bins == 0:
        return x, y
    mean_x, mean_y = (np.array([part.mean() for part in np.array_split(values, bins)]) for values in (x, y))
    return mean_x, mean_y


def _rl_runs(runs: Runs) -> Iterator[tuple[str, Sequence[dict], dict[str, Any]]]:
    """Yield every run except CE's with its style; a system has one colour in all plots and one label."""
    for number, (system, seeds) in enumerate(runs.items()):
        for seed, lines in enumerate(seeds if system != "ce" else ()):
            yield system, lines, {"color": f"C{number}", "label": None if seed else system, "alpha": 0.7}


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
