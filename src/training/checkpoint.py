"""Checkpoints: one safetensors file each, whose metadata holds the state as JSON. Nothing is pickled.

A file appears under its name complete or not at all. `last` is what a run goes on from (with the optimiser), `best`
is what it hands out (parameters only); `previous` is the `last` before.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from src.errors import InputError
from src.files import whole_file
from src.models.captioner import Captioner

FORMAT = "1"


def save_checkpoint(
    path: Path, captioner: Captioner, state: dict[str, Any], optimizer_state: dict | None = None
) -> None:
    """Write parameters, `state` (JSON) and, for a checkpoint to go on from, the optimiser's parameters.

    Errors: InputError where the folder cannot be written or the disk is full; the file before stays.
    """
    arrays = {f"model.{name}": value.asnumpy() for name, value in captioner.parameters_and_names()}
    arrays |= {f"optimizer.{name}": value.asnumpy() for name, value in (optimizer_state or {}).items()}
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    try:
        with whole_file(path) as partial:
            save_file(arrays, partial, metadata={"format": FORMAT, "state": json.dumps(state)})
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if path.name == "last" and path.exists():
                os.replace(path, path.with_name("previous"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the checkpoint {path}: {error}; free or choose another output_root") from None


def find_last(folder: Path) -> Path | None:
    """The checkpoint that a run in `folder` goes on from: `last`, or `previous` after a crash between two renames."""
    for name in ("last", "previous"):
        if (folder / "checkpoints" / name).is_file():
            return folder / "checkpoints" / name
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, without its arrays. Errors: InputError naming the file."""
    with _open(path) as file:
        return _state(file, path)


def load_checkpoint(path: Path, captioner: Captioner, optimizer_state: dict | None = None) -> dict[str, Any]:
    """Load parameters (and the optimiser's) in place, and return the state.

    Errors: InputError where the file is missing, damaged, or of another model: names the first differing parameter.
    """
    with _open(path) as file:
        state = _state(file, path)
        targets = {f"model.{name}": value for name, value in captioner.parameters_and_names()}
        targets |= {f"optimizer.{name}": value for name, value in (optimizer_state or {}).items()}
        names = set(file.keys())
        for name, parameter in targets.items():
            if name not in names:
                raise InputError(
                    f"{path} is of another model: it has no {name}; give the configuration it was made with"
                )
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(parameter.shape):
                raise InputError(
                    f"{path} is of another model or vocabulary: {name} has shape {shape}, the configuration makes "
                    f"{tuple(parameter.shape)}; give the configuration it was made with"
                )
        extra = sorted(name for name in names if name.startswith("model.") and name not in targets)
        if extra:
            raise InputError(f"{path} is of another model: {extra[0]} is not in the model of this configuration")
        for name, parameter in targets.items():
            parameter.set_data(Tensor(file.get_tensor(name), parameter.dtype))
    return state


def optimizer_parameters(optimizer: Any, captioner: Captioner) -> dict[str, Parameter]:
    """Step counter and moments of MindFormers' AdamW, named after the captioner's parameters."""
    names = {id(parameter): name for name, parameter in captioner.parameters_and_names()}
    state = {"global_step": optimizer.global_step}
    for parameter, first, second in zip(optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq):
        state[f"exp_avg.{names[id(parameter)]}"] = first
        state[f"exp_avg_sq.{names[id(parameter)]}"] = second
    return state


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"the checkpoint {path} is damaged or no checkpoint of this project: {error}") from None


def _state(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of this project; encoder weights belong to encoder.checkpoint")
    return json.loads(metadata["state"])
