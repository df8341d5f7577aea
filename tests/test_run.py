"""What a run folder refuses, and what it survives."""

import pytest

from src.config_load import load_config
from src.errors import InputError
from src.files import file_digest
from src.training.metrics import read_lines
from src.training.run_folder import check_init, is_complete, open_run_folder


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
    open_run_folder(configured(tmp_path, "fresh=true"))
    assert not thesis.exists()


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
