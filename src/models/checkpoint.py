"""Reading checkpoints: one safetensors file each, whose metadata holds the state as JSON and a digest.

Nothing is pickled, and a file is checked against its digest whenever its arrays are read. src/training/checkpoint.py
writes them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from safetensors import SafetensorError, safe_open

from src.config.schema import Config
from src.data.pretrained_tokenizer import load_pretrained_tokenizer
from src.data.tokenizer import Tokenizer, load_tokenizer
from src.models.policy import Policy
from src.runtime.errors import InputError

FORMAT = "2"


def load_checkpoint(path: Path, policy: Policy, optimizer_state: dict | None = None) -> dict[str, Any]:
    """Load parameters (and the optimiser's) in place, and return the state.

    Errors: InputError where the file is missing, damaged, or of another model: names the first differing parameter.
    """
    state, arrays = read_checkpoint(path)
    if policy.base is not None and state.get("base") != policy.base:
        raise InputError(
            f"{path} was trained with other pretrained files (policy.path, encoder.checkpoint), or with another "
            "lora.alpha or lora.targets; use the files and settings that it was trained with"
        )
    targets = {f"model.{name}": value for name, value in policy.saved_parameters().items()}
    targets |= {f"optimizer.{name}": value for name, value in (optimizer_state or {}).items()}
    for name, parameter in targets.items():
        if name not in arrays:
            raise InputError(
                f"{path} belongs to another model: it has no {name}; use the configuration it was trained with"
            )
        shape = arrays[name].shape
        if shape != tuple(parameter.shape):
            raise InputError(
                f"{path} belongs to another model or vocabulary: {name} has shape {shape}, but the configuration "
                f"needs {tuple(parameter.shape)}; use the configuration it was trained with"
            )
    extra = sorted(name for name in arrays if name.startswith("model.") and name not in targets)
    if extra:
        raise InputError(
            f"{path} belongs to another model: this configuration has no {extra[0]}; use the one it was trained with"
        )
    for name, parameter in targets.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, without its arrays. Errors: InputError naming the file."""
    with _open(path) as file:
        return json.loads(_metadata(file, path)["state"])


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """State and arrays. Errors: InputError where the file is missing, foreign or damaged."""
    with _open(path) as file:
        metadata = _metadata(file, path)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if arrays_digest(metadata["state"], arrays) != metadata["sha256"]:
        raise InputError(f"the checkpoint {path} is damaged: its digest does not match its contents")
    return json.loads(metadata["state"]), arrays


def load_run_tokenizer(checkpoint: Path, config: Config) -> Tokenizer:
    """The tokenizer of `policy.path`, or tokenizer.json of a checkpoint's own folder or of the run that owns it."""
    if config.policy.is_pretrained:
        return load_pretrained_tokenizer(config)
    own = checkpoint.resolve().parent / "tokenizer.json"
    above = own.parent.parent / own.name
    alone = own.parent.name != "checkpoints" and not above.is_file()  # then it is missed beside the file
    return load_tokenizer(own if own.is_file() or alone else above)


def check_tokenizer(path: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """InputError if the checkpoint's vocabulary is not the tokenizer's."""
    if state.get("tokenizer") != tokenizer.fingerprint:
        raise InputError(
            f"{path}: the vocabulary does not match tokenizer.json or this dataset, or the prompt policy.prompt; "
            "restore the original"
        )


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; check the path")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"the checkpoint {path} is damaged or was not written by this project: {error}") from None


def _metadata(file: Any, path: Path) -> dict[str, str]:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or not {"state", "sha256"} <= metadata.keys():
        raise InputError(f"{path} was not written by this project; pass encoder weights as encoder.checkpoint")
    return metadata


def arrays_digest(state: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the state and of names, types, shapes and values of all arrays."""
    digest = hashlib.sha256(state.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
