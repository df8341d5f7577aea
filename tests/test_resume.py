"""Resuming after kill -9 gives the same losses to the last digit, for CE with dropout and within a GRPO rollout."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from event_reader import logged_scalars, read_pictures, read_scalars
from safetensors.numpy import load_file
from tiny import PYTHON, TINY, WORLD, tiny_data

from src.training.metrics import read_lines


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, train/loss) of every logged update."""
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def train(stage: str, root: Path, *extra: str) -> subprocess.Popen:
    settings = [*TINY, *extra, f"output_root={root}", f"data.root={tiny_data()}"]
    command = [PYTHON, "train.py", "--config", f"configs/demo/{stage}.yaml", *settings]
    return subprocess.Popen(command, cwd=WORLD, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def kill_after(process: subprocess.Popen, folder: Path, steps: int) -> None:
    """kill -9 as soon as `steps` updates are logged; the run must not have ended by then."""
    while process.poll() is None and len(losses(folder)) < steps:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def ce_runs(tmp_path_factory):
    """A CE run of 6 steps, and the same killed after 3 and resumed. save_steps=2: step 3 must be done again."""
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    finish(train("ce", whole, "ce.save_steps=2"))
    kill_after(train("ce", cut, "ce.save_steps=2"), cut / "demo-ce", 3)
    finish(train("ce", cut, "ce.save_steps=2"))
    return whole / "demo-ce", cut / "demo-ce"


def test_ce_with_dropout(ce_runs):
    whole, cut = map(losses, ce_runs)
    assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    assert whole == cut
    assert len({loss for _, loss in whole}) == 6
    best = [load_file(folder / "checkpoints/best") for folder in ce_runs]  # the order inside a file is not fixed
    assert best[0].keys() == best[1].keys() and all((best[0][name] == best[1][name]).all() for name in best[0])


def test_curves_go_on_without_duplicates(ce_runs):
    whole, cut = ([step for step, _ in read_pictures(folder)] for folder in ce_runs)
    assert whole == cut == [2, 4, 6]
    for folder, starts in zip(ce_runs, (1, 2)):
        assert len(list(folder.glob("events*"))) == starts
        assert read_scalars(folder) == logged_scalars(folder)


def test_grpo_in_the_middle_of_a_rollouts_passes(ce_runs, tmp_path):
    """Two rollouts of 2 passes x 2 updates; killed after step 7, the second pass of the second rollout.

    In float16, which has more to resume: the loss scale.
    """
    settings = [f"init_checkpoint={ce_runs[0] / 'checkpoints/best'}", "precision=float16"]
    finish(train("grpo", tmp_path / "whole", *settings))
    kill_after(train("grpo", tmp_path / "cut", *settings), tmp_path / "cut/demo-grpo", 7)
    assert losses(tmp_path / "cut/demo-grpo")[-1][0] in (7, 8)
    finish(train("grpo", tmp_path / "cut", *settings))
    whole, cut = losses(tmp_path / "whole/demo-grpo"), losses(tmp_path / "cut/demo-grpo")
    assert [step for step, _ in whole] == list(range(1, 9))
    assert whole == cut
    assert read_scalars(tmp_path / "cut/demo-grpo") == logged_scalars(tmp_path / "cut/demo-grpo")
    last = load_file(tmp_path / "cut/demo-grpo/checkpoints/last")
    assert (last["optimizer.loss_scale"], last["optimizer.loss_scale_counter"]) == (2**15, 8)
