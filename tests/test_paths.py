"""Paths that a command names: of the folder that it is called from; those of configurations: of the repository."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import WORLD

from src.captioning.arguments import name_checkpoints, read_image_arguments
from src.config.load import differing_keys, load_config, resolved
from src.config.rules import flatten
from src.config.schema import FILE_KEYS, INNER_FILE_KEYS
from src.runtime.errors import InputError
from src.runtime.files import given_file, given_path


@pytest.fixture
def caller(tmp_path, monkeypatch):
    """Another folder than the root, with a home of its own below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_every_key_that_names_a_file_is_known():
    """Of all keys whose value in some configuration looks like a path, and null ones that a document calls a file."""
    values: dict[str, set] = {}
    for file in WORLD.glob("configs/*/*.yaml"):
        if not file.stem.startswith("comparison"):
            for key, value in flatten(resolved(load_config(file))).items():
                values.setdefault(key, set()).add(value)
    named = {key for key, found in values.items() if any(isinstance(v, str) and ("/" in v or "." in v) for v in found)}
    named -= {"caprl.base_url", "caprl.model", "caprl.template", "policy.prompt"}
    assert named <= {*FILE_KEYS, *INNER_FILE_KEYS}
    assert {*FILE_KEYS, *INNER_FILE_KEYS} <= values.keys()


def test_relative_paths_of_a_configuration_are_of_the_root_and_given_ones_of_the_caller(caller):
    settings = ["data.root=../d", "init_checkpoint=a=b/best", "tokenizer.vocab=~/v.txt", "data.lists=~/lists"]
    config = load_config(WORLD / "configs/coco/grpo.yaml", settings)
    assert (config.data.root, config.init_checkpoint) == ("../d", "a=b/best")
    assert (config.tokenizer.vocab, config.data.lists) == (f"{caller}/home/v.txt", f"{caller}/home/lists")
    assert config.encoder.checkpoint == f"{WORLD}/data/resnet50_224_new.ckpt"
    assert config.run_folder == WORLD / "outputs/coco-grpo" and config.init_config == "ce.yaml"
    assert load_config(WORLD / "configs/demo/ce.yaml", ["data.root=~"]).data.root == f"{caller}/home"
    assert load_config(WORLD / "configs/coco/ce.yaml", ["encoder.checkpoint=~"]).encoder.checkpoint is None


def test_a_run_is_the_same_wherever_its_command_is_called_from(caller, monkeypatch):
    there = resolved(load_config(WORLD / "configs/demo/ce.yaml", ["data.root=x"]))
    assert there["output_root"] == "outputs" and there["data"]["root"] == f"{caller}/x"
    monkeypatch.chdir(WORLD)
    here = resolved(load_config("configs/demo/ce.yaml", [f"data.root={caller}/y/../x"]))
    assert here["output_root"] == "outputs"
    assert differing_keys(there, here) == []
    inside = resolved(load_config("configs/demo/ce.yaml", [f"data.root={WORLD}/data/demo"]))
    assert differing_keys(inside, resolved(load_config("configs/demo/ce.yaml"))) == []
    other = resolved(load_config("configs/demo/ce.yaml", ["data.root=x"]))
    assert differing_keys(there, other) == ["data.root"]


def test_a_file_of_the_root_is_found_from_elsewhere(caller):
    assert given_file("configs/demo/ce.yaml") == WORLD / "configs/demo/ce.yaml"
    assert given_file("configs/none.yaml") == Path("configs/none.yaml")
    assert given_path("~/x") == caller / "home/x" and given_path("~nobody-of-this-name/x") == Path(
        "~nobody-of-this-name/x"
    )
    (caller / "configs/demo").mkdir(parents=True)
    (caller / "configs/demo/ce.yaml").touch()
    assert given_file("configs/demo/ce.yaml") == Path("configs/demo/ce.yaml")


def test_checkpoints_whose_path_holds_an_equals_sign(caller):
    for folder in ("runs/lr=0.1/checkpoints", "home/a b", "lr=1"):
        (caller / folder).mkdir(parents=True)
        (caller / folder / "best").touch()
    given = ["runs/lr=0.1/checkpoints/best", f"B={caller}/lr=1/best", "C=lr=1/best", "D=~/a b/best"]
    assert {name: str(path) for name, path in name_checkpoints(given).items()} == {
        "lr=0.1": "runs/lr=0.1/checkpoints/best",
        "B": f"{caller}/lr=1/best",
        "C": "lr=1/best",
        "D": f"{caller}/home/a b/best",
    }
    assert list(name_checkpoints(["lr=1/best"])) == ["best"]
    (caller / "a|b=(ü)/checkpoints").mkdir(parents=True)
    (caller / "a|b=(ü)/checkpoints/best").touch()
    assert list(name_checkpoints([f"{caller}/a|b=(ü)/checkpoints/best"])) == ["a-b=-ü-"]


@pytest.mark.parametrize("word", ["/runs/lr=0.1/best", "runs/lr=0.1/best", "../x=y", "A=/runs/lr=0.1/best"])
def test_a_path_with_an_equals_sign_that_is_not_there_is_named_whole(caller, word):
    with pytest.raises(InputError, match=f"there is no file {re.escape(word.removeprefix('A='))}"):
        name_checkpoints([word])


def test_the_home_folder_of_photographs_and_lists(caller):
    words = argparse.Namespace(
        checkpoint=["x"], images=["@~/list", "~/a.jpg", "b~.jpg"], output=None, overrides=[], config=Path("c")
    )
    (caller / "x").touch()
    read_image_arguments(words)
    assert words.images == [f"@{caller}/home/list", f"{caller}/home/a.jpg", "b~.jpg"]


def test_a_script_works_in_the_folder_of_its_caller(caller):
    """`--config` is found at the root; what a message holds can be printed in any locale."""
    (caller / "d").mkdir()
    (caller / "d/results.csv").write_text("nothing\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    environment.pop("CAPTIONER_SAID", None)

    def run(script: str, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(WORLD / "scripts" / script), *words],
            cwd=caller,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr

    settings = ["data.dataset=x", "data.format=table", "data.root=d", "data.annotations=results.csv"]
    status, error = run("run_ce.sh", "--config", "configs/demo/ce.yaml", *settings)
    assert status == 2 and error.startswith("error: d/results.csv: line 1: 'nothing' is an unknown layout"), error
    status, error = run("run_grpo.sh", "data.root=~/ü\u202f", "data.dataset=x")
    assert status == 2 and f"data.root={caller}/home/\\xfc\\u202f: no such folder" in error, error
    assert not (caller / "outputs").exists() and list(caller.iterdir()) == [caller / "d"]


def test_names_that_no_file_can_have_are_not_there(caller):
    for name in ("a" * 300, "b" * 300 + "/c"):
        assert given_file(name) == Path(name)
        with pytest.raises(InputError, match="there is no file"):
            name_checkpoints([name])
