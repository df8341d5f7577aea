"""Checkpoints: one safetensors file each, whose metadata holds the state as JSON and a digest. Nothing is pickled.

A file appears under its name complete or not at all, and is checked against its digest whenever it is read. A run
resumes from `last` (with the optimiser) and hands out `best` (parameters only); `previous` is the checkpoint before
`last`, and replaces it if it is damaged.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter
from safetensors import SafetensorError
from safetensors.numpy import save_file

from src.models.checkpoint import FORMAT, arrays_digest, read_checkpoint
from src.models.policy import Policy
from src.runtime.errors import InputError
from src.runtime.files import whole_file


def save_checkpoint(path: Path, policy: Policy, state: dict[str, Any], optimizer_state: dict | None = None) -> None:
    """Write parameters, `state` (JSON) and, if the run will resume from it, the optimiser's parameters.

    Errors: InputError if the folder cannot be written or the disk is full; the previous file stays.
    """
    arrays = {f"model.{name}": value.asnumpy() for name, value in policy.saved_parameters().items()}
    arrays |= {f"optimizer.{name}": value.asnumpy() for name, value in (optimizer_state or {}).items()}
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    state = state if policy.base is None else state | {"base": policy.base}
    metadata = {"format": FORMAT, "state": json.dumps(state)}
    metadata["sha256"] = arrays_digest(metadata["state"], arrays)
    try:
        with whole_file(path) as partial:
            save_file(arrays, partial, metadata=metadata)
            partial.chmod(0o666 & ~_umask())  # safetensors writes files that their owner alone can read
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if path.name == "last" and path.exists():
                os.replace(path, path.with_name("previous"))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write the checkpoint {path}: {error}; free space, or choose another output_root"
        ) from None


def _umask() -> int:
    mask = os.umask(0)  # which can only be read by setting it
    os.umask(mask)
    return mask


def find_last(folder: Path) -> Path | None:
    """Return the checkpoint that a run in `folder` resumes from: `last`, or `previous` if `last` is missing or damaged.

    A crash between two renames leaves no `last`. A damaged file is renamed to `damaged`, with a warning on stderr.
    Errors: InputError if all are damaged.
    """
    last, previous = (folder / "checkpoints" / name for name in ("last", "previous"))
    if last.is_file():
        try:
            read_checkpoint(last)
            return last
        except InputError as error:
            try:
                read_checkpoint(previous)
            except InputError:
                raise InputError(
                    f"{error}. No intact earlier checkpoint exists; delete {folder} to start this stage over"
                ) from None
            os.replace(last, last.with_name("damaged"))  # else the next save would make it `previous`
            print(f"warning: {error}; resuming from {previous}", file=sys.stderr)
    return previous if previous.is_file() else None


def optimizer_parameters(optimizer: Any, policy: Policy, loss_scale: Any) -> dict[str, Parameter]:
    """Step counter and moments of MindFormers' AdamW, named after the captioner's parameters, and the loss scale's."""
    names = {id(parameter): name for name, parameter in policy.parameters_and_names()}
    state = {"global_step": optimizer.global_step}
    for parameter, first, second in zip(optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq):
        state[f"exp_avg.{names[id(parameter)]}"] = first
        state[f"exp_avg_sq.{names[id(parameter)]}"] = second
    if loss_scale is not None:
        state |= {"loss_scale": loss_scale.scale_value, "loss_scale_counter": loss_scale.counter}
    return state
