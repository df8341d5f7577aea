"""Checkpoints: the same values again, whole files only, clear errors."""

import os

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import load_file, save_file

from src.models.checkpoint import load_checkpoint, read_state
from src.models.policy import Policy
from src.runtime.errors import InputError
from src.training.checkpoint import find_last, save_checkpoint


class Model(Policy):
    def __init__(self, width=3):
        super().__init__()
        self.weight = Parameter(Tensor(np.arange(2 * width, dtype=np.float32).reshape(2, width)), name="weight")
        self.inner = nn.Dense(2, 2)


class Other(Policy):
    def __init__(self):
        super().__init__()
        self.inner = nn.Dense(2, 2)


def values(cell):
    return {name: value.asnumpy().copy() for name, value in cell.parameters_and_names()}


def test_round_trip_with_optimizer_and_state(tmp_path):
    model, other = Model(), Model()
    moment, step = Parameter(Tensor([1.5, 2.5])), Parameter(Tensor([7]))
    state = {"step": 7, "best_score": 0.1 + 0.2}
    save_checkpoint(tmp_path / "last", model, state, {"exp_avg": moment, "global_step": step})
    other.weight.set_data(Tensor(np.zeros((2, 3), np.float32)))
    again = {"exp_avg": Parameter(Tensor([0.0, 0.0])), "global_step": Parameter(Tensor([0]))}
    assert load_checkpoint(tmp_path / "last", other, again) == state == read_state(tmp_path / "last")
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(other)[name], value)
    assert again["exp_avg"].asnumpy().tolist() == [1.5, 2.5] and again["global_step"].asnumpy().tolist() == [7]
    load_checkpoint(tmp_path / "last", other)  # parameters alone


def test_it_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "last", Model(), {})
    finally:
        os.umask(before)
    assert (tmp_path / "last").stat().st_mode & 0o777 == 0o640


def test_the_last_but_one_is_kept_and_found_when_last_is_gone(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert find_last(tmp_path) is None
    save_checkpoint(folder / "last", Model(), {"step": 1})
    save_checkpoint(folder / "last", Model(), {"step": 2})
    assert read_state(find_last(tmp_path)) == {"step": 2}
    (folder / "last").unlink()  # a crash between the two renames
    assert read_state(find_last(tmp_path)) == {"step": 1}


def flip_a_bit(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_last_gives_way_to_the_one_before(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2):
        save_checkpoint(folder / "last", Model(), {"step": step})
    flip_a_bit(folder / "last")
    assert read_state(find_last(tmp_path)) == {"step": 1}
    assert capsys.readouterr().err.startswith(f"warning: the checkpoint {folder}/last is damaged")
    assert sorted(file.name for file in folder.iterdir()) == ["damaged", "previous"]
    save_checkpoint(folder / "last", Model(), {"step": 2})
    assert read_state(find_last(tmp_path)) == {"step": 2} and read_state(folder / "previous") == {"step": 1}
    flip_a_bit(folder / "last")
    flip_a_bit(folder / "previous")
    for _ in range(2):
        with pytest.raises(
            InputError, match=f"last is damaged.*No intact earlier checkpoint exists; delete {tmp_path} "
        ):
            find_last(tmp_path)
        (folder / "previous").unlink(missing_ok=True)


def test_a_state_that_was_changed_is_noticed(tmp_path):
    save_checkpoint(tmp_path / "best", Model(), {"step": 41})
    content = (tmp_path / "best").read_bytes()
    (tmp_path / "best").write_bytes(content.replace(b"41", b"42"))
    with pytest.raises(InputError, match="digest"):
        load_checkpoint(tmp_path / "best", Model())


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "best"
    save_checkpoint(path, Model(), {"step": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("src.training.checkpoint.os.fsync", full)
    with pytest.raises(InputError, match=r"best: .*No space left.*output_root"):
        save_checkpoint(path, Model(), {"step": 2})
    assert read_state(path) == {"step": 1}


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.unlink(), "no checkpoint at"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "damaged"),
        (lambda path: path.write_bytes(b"\x00" * 100), "damaged"),
        (flip_a_bit, "digest"),
        (lambda path: save_file(load_file(path), path), "was not written by this project"),
        (lambda path: save_checkpoint(path, Model(width=4), {}), r"model.weight has shape \(2, 4\)"),
        (lambda path: save_checkpoint(path, Other(), {}), "another model"),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_nothing_is_loaded(tmp_path, damage, words):
    path = tmp_path / "best"
    save_checkpoint(path, Model(), {})
    damage(path)
    model = Model()
    before = values(model)
    with pytest.raises(InputError, match=words) as error:
        load_checkpoint(path, model)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_smaller_model_does_not_take_part_of_a_larger_file(tmp_path):
    save_checkpoint(tmp_path / "best", Model(), {})
    small = Model()
    del small.inner
    with pytest.raises(InputError, match="inner"):
        load_checkpoint(tmp_path / "best", small)
