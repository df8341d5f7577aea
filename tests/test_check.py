import json
import shutil

import numpy as np
from tiny import TINY, run, tiny_data

from src.commands.check import split_facts
from src.config.load import load_config


def test_facts_of_a_split_by_hand():
    config = load_config("configs/demo/ce.yaml", ["ce.tokens=4"])
    unknown = [np.array([False, True, False]), np.zeros(4, bool), np.zeros(5, bool)]
    # 12 tokens of which one is unknown; of 4 tokens all fit, of 5 the last is cut
    assert split_facts(unknown, 2, config) == ["2", "3", "4.0", "5", "33.3%", "8.3%"]


def test_everything_is_read_and_what_is_broken_is_named(tmp_path):
    settings = [*TINY, f"output_root={tmp_path}", f"data.root={tiny_data()}"]
    result = run("-m", "src.commands.check", "--config", "configs/demo/ce.yaml", *settings)
    assert result.returncode == 0, result.stderr
    assert "| train | 64 | 320 |" in result.stdout and "| test | 16 | 80 |" in result.stdout
    assert "0 images or captions skipped" in result.stdout
    shutil.copytree(tiny_data(), tmp_path / "mine")
    broken = sorted((tmp_path / "mine/images/train").iterdir())[0]
    data = bytearray(broken.read_bytes())
    data[60:90] = bytes(30)  # header and end marker stay: only decoding finds it
    broken.write_bytes(data)
    settings += ["data.dataset=mine", f"data.root={tmp_path}/mine"]
    result = run("-m", "src.commands.check", "--config", "configs/demo/ce.yaml", *settings)
    assert result.returncode == 2 and f"1 images would stop a run, first {broken}" in result.stderr, result.stderr


def test_the_former_name_says_the_new_one():
    done = run("-m", "src.data.check", "--config", "configs/demo/ce.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: src.data.check is now src.commands.check: python -m src.commands.check --config FILE\n"
    )


def test_questions_that_the_reader_does_not_know_are_found_before_training(tmp_path):
    shutil.copytree(tiny_data(), tmp_path / "mine")
    line = {"image_id": 100000, "question": "how old is he", "options": ["old", "young"], "answer": "old"}
    (tmp_path / "mine/own.jsonl").write_text(json.dumps(line) + "\n")
    settings = [*TINY, "data.dataset=mine", f"output_root={tmp_path}", f"data.root={tmp_path}/mine"]
    settings += ["caprl.questions=own.jsonl", "--config", "configs/demo/grpo_caprl.yaml"]
    for program in (["src.commands.check"], ["src.commands.pipeline", "grpo"]):
        result = run("-m", *program, *settings)
        assert result.returncode == 2 and "own.jsonl: 'how old is he' cannot be answered" in result.stderr
    assert not (tmp_path / "mine-ce").exists()
