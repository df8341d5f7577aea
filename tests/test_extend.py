"""The examples of docs/extend.md: taken from the page, put into a copy of the project, and trained with."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from tiny import PYTHON, ROOT, TINY, tiny_data

from src.models.checkpoint import read_checkpoint
from src.rewards.completions import Completions

PAGE = (ROOT / "docs/extend.md").read_text()
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
PATCHES = re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def written(title: str) -> list[str]:
    """What a section's examples have the user write: lines of files that are not blank, and those of a diff."""
    text = section(title)
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in code for line in block.splitlines() if line.strip()]
    return lines + re.findall(r"^\+(?!\+).*\S", text, re.MULTILINE)


def settings(title: str) -> list[str]:
    """The key=value of the last command that a section shows."""
    *_, last = re.findall(r"^```(?:ba)?sh\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)
    return re.findall(r"(\S+=\S+)", last)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the page's files, and its diffs applied."""
    folder = tmp_path_factory.mktemp("extended") / "project"
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, code in FILES.items():
        (folder / name).write_text(code)
    for patch in PATCHES:
        command = ["git", "apply", "--verbose", "-"]
        done = subprocess.run(command, cwd=folder, input=patch, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def run(project: Path, *command: str) -> None:
    done = subprocess.run([PYTHON, *command], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(project):
    """CE with the new encoder."""
    tiny = [*TINY, f"data.root={tiny_data()}", "output_root=outputs", "ce.epochs=1", *settings("An encoder")]
    run(project, "train.py", "--config", "configs/demo/ce.yaml", *tiny)
    return tiny


@pytest.mark.parametrize("title", ["A reward", "An encoder"])
def test_an_example_is_less_than_thirty_lines(title):
    assert 10 < len(written(title)) < 30


def test_the_examples_keep_the_style_of_the_project(project):
    run(project, "-m", "ruff", "check", ".")
    run(project, "-m", "ruff", "format", "--check", ".")


def test_the_encoder_projects_patches_as_numpy_does(project, monkeypatch):
    spec = importlib.util.spec_from_file_location("patches", project / "src/models/encoders/patches.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # graph mode, if a test before set it, looks it up there
    spec.loader.exec_module(module)
    encoder = module.Patches(64)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    parameters = (encoder.project.weight, encoder.project.bias, encoder.positions)
    weight, bias, positions = (parameter.asnumpy().astype(np.float64) for parameter in parameters)
    patches = images.reshape(2, 3, 4, 16, 4, 16).astype(np.float64)  # [B, 3, row, y, column, x]
    x = np.einsum("bcrysx,kcyx->brsk", patches, weight).reshape(2, 16, 256) + bias
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + positions
    np.testing.assert_allclose(encoder(ms.Tensor(images)).asnumpy(), x, atol=1e-4)


def test_ce_trains_the_encoder(project, trained):
    _, weights = read_checkpoint(project / "outputs/demo-patches/checkpoints/best")
    assert weights["model.encoder.project.weight"].shape == (256, 3, 16, 16)
    assert np.ptp(weights["model.encoder.norm.gamma"]) > 0  # all 1 at first


def test_a_reward_is_what_its_page_says():
    names: dict = {}
    exec(compile(FILES["src/rewards/ending.py"], "src/rewards/ending.py", "exec"), names)
    captions = ["a man with a", "a man with a hat", "a", ""]
    rows = np.arange(4)
    assert names["ending"](Completions(0, rows, rows, captions, rows > 0)).tolist() == [-1, 0, -1, 0]


def test_grpo_learns_from_the_reward(project, trained):
    init = "init_checkpoint=outputs/demo-patches/checkpoints/best"
    run(project, "train.py", "--config", "configs/demo/grpo.yaml", *trained, init, *settings("A reward"))
    lines = [json.loads(line) for line in (project / "outputs/demo-ending/metrics.jsonl").read_text().splitlines()]
    rollouts = [line for line in lines if "rollout/reward_mean" in line]
    assert len(rollouts) == 2
    for line in rollouts:
        ending = line["rollout/reward_ending_mean"]
        assert -1 <= ending <= 0 and (ending * 24) == pytest.approx(round(ending * 24), abs=1e-4)  # 8 images x 3
        total = line["rollout/reward_cider_mean"] + ending
        assert line["rollout/reward_mean"] == pytest.approx(total, abs=1e-4)
