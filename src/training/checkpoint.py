"""Checkpoints: one safetensors file each, whose metadata holds the state as JSON and a digest. Nothing is pickled.

A file appears under its name complete or not at all, and is checked against its digest whenever it is read. `last` is
what a run goes on from (with the optimiser), `best` is what it hands out (parameters only); `previous` is the `last`
before, which takes its place where it is damaged.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from src.data.tokenizer import Tokenizer, load_tokenizer
from src.models.captioner.policy import Captioner
from src.runtime.errors import InputError
from src.runtime.files import whole_file

FORMAT = "2"


def save_checkpoint(
    path: Path, captioner: Captioner, state: dict[str, Any], optimizer_state: dict | None = None
) -> None:
    """Write parameters, `state` (JSON) and, for a checkpoint to go on from, the optimiser's parameters.

    Errors: InputError where the folder cannot be written or the disk is full; the file before stays.
    """
    arrays = {f"model.{name}": value.asnumpy() for name, value in captioner.parameters_and_names()}
    arrays |= {f"optimizer.{name}": value.asnumpy() for name, value in (optimizer_state or {}).items()}
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    metadata = {"format": FORMAT, "state": json.dumps(state)}
    metadata["sha256"] = _digest(metadata["state"], arrays)
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
    """The checkpoint that a run in `folder` goes on from: `last`, or `previous` where `last` is missing or damaged.

    A crash between two renames leaves no `last`. A damaged one is renamed to `damaged`, and a line on stderr says so.
    Errors: InputError where all are damaged.
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
            print(f"warning: {error}; going on from {previous}", file=sys.stderr)
    return previous if previous.is_file() else None


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, without its arrays. Errors: InputError naming the file."""
    with _open(path) as file:
        return json.loads(_metadata(file, path)["state"])


def load_checkpoint(path: Path, captioner: Captioner, optimizer_state: dict | None = None) -> dict[str, Any]:
    """Load parameters (and the optimiser's) in place, and return the state.

    Errors: InputError where the file is missing, damaged, or of another model: names the first differing parameter.
    """
    state, arrays = read_checkpoint(path)
    targets = {f"model.{name}": value for name, value in captioner.parameters_and_names()}
    targets |= {f"optimizer.{name}": value for name, value in (optimizer_state or {}).items()}
    for name, parameter in targets.items():
        if name not in arrays:
            raise InputError(f"{path} is of another model: it has no {name}; give the configuration it was made with")
        shape = arrays[name].shape
        if shape != tuple(parameter.shape):
            raise InputError(
                f"{path} is of another model or vocabulary: {name} has shape {shape}, the configuration makes "
                f"{tuple(parameter.shape)}; give the configuration it was made with"
            )
    extra = sorted(name for name in arrays if name.startswith("model.") and name not in targets)
    if extra:
        raise InputError(f"{path} is of another model: {extra[0]} is not in the model of this configuration")
    for name, parameter in targets.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))
    return state


def load_run_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer.json of a checkpoint's own folder, or of the run that owns it."""
    own = checkpoint.resolve().parent / "tokenizer.json"
    above = own.parent.parent / own.name
    alone = own.parent.name != "checkpoints" and not above.is_file()  # then it is missed beside the file
    return load_tokenizer(own if own.is_file() or alone else above)


def check_tokenizer(path: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """InputError if the checkpoint's vocabulary is not the tokenizer's."""
    if state.get("tokenizer") != tokenizer.fingerprint:
        raise InputError(
            f"{path} was trained with another vocabulary than its tokenizer.json or this data has: restore that file"
        )


def optimizer_parameters(optimizer: Any, captioner: Captioner, loss_scale: Any) -> dict[str, Parameter]:
    """Step counter and moments of MindFormers' AdamW, named after the captioner's parameters, and the loss scale's."""
    names = {id(parameter): name for name, parameter in captioner.parameters_and_names()}
    state = {"global_step": optimizer.global_step}
    for parameter, first, second in zip(optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq):
        state[f"exp_avg.{names[id(parameter)]}"] = first
        state[f"exp_avg_sq.{names[id(parameter)]}"] = second
    if loss_scale is not None:
        state |= {"loss_scale": loss_scale.scale_value, "loss_scale_counter": loss_scale.counter}
    return state


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"the checkpoint {path} is damaged or no checkpoint of this project: {error}") from None


def _metadata(file: Any, path: Path) -> dict[str, str]:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or not {"state", "sha256"} <= metadata.keys():
        raise InputError(f"{path} is no checkpoint of this project; encoder weights belong to encoder.checkpoint")
    return metadata


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """State and arrays. Errors: InputError where the file is missing, foreign or damaged."""
    with _open(path) as file:
        metadata = _metadata(file, path)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if _digest(metadata["state"], arrays) != metadata["sha256"]:
        raise InputError(f"the checkpoint {path} is damaged: it does not have the digest that it was written with")
    return json.loads(metadata["state"]), arrays


def _digest(state: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the state and of names, types, shapes and values of all arrays."""
    digest = hashlib.sha256(state.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
