"""Read the weights of a pretrained model's folder in Hugging Face's layout: safetensors, in one file or in shards.

The files are not trusted: paths stay within the folder, and shapes, types and sizes are checked before they are used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from src.data.model_folder import read_json
from src.runtime.errors import InputError, one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_Entry = tuple[str, tuple[int, ...], int]  # type, shape, first byte
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # BF16 as its bits


class PretrainedWeights:
    """The tensors of model.safetensors, or of the shards that its index names, read one at a time as float32.

    Errors: InputError naming the folder's file for what is missing, damaged or of another shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}  # by tensor
        self._entries: dict[str, _Entry] = {}
        for path in self._paths():
            for name, entry in _entries(path).items():
                self._files[name], self._entries[name] = path, entry

    def _paths(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            shards = read_json(self.folder, INDEX).get("weight_map")
            names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
            if not names or any(Path(name).name != name for name in names):
                raise InputError(f"{self.folder / INDEX} is damaged: it does not map tensors to files; copy it again")
        else:
            names = [WEIGHTS]
        for name in names:
            if not (self.folder / name).is_file():
                raise InputError(
                    f"{self.folder / name} is missing; copy it again (weights are read from .safetensors only: .bin "
                    "files hold pickles, which can run code)"
                )
        return [self.folder / name for name in names]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape. Errors: InputError if it is missing."""
        if name not in self._entries:
            raise InputError(f"{self.folder}: the tensor {name} is missing from its weights; copy the folder again")
        return self._entries[name][1]

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return a tensor as float32 of `shape`, which must be the file's."""
        found = self.shape(name)
        dtype, _, start = self._entries[name]
        path = self._files[name]
        if dtype not in _TYPES:
            raise InputError(f"{path}: {name} has type {dtype}; use unquantised weights (float32, float16 or bfloat16)")
        if found != tuple(shape):
            raise InputError(
                f"{path}: {name} has shape {found}, but config.json needs {tuple(shape)}; use its own file"
            )
        values = np.fromfile(path, _TYPES[dtype], int(np.prod(found)), offset=start).reshape(found)
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} has values that are not finite; use other weights")
        return values


def _entries(path: Path) -> dict[str, _Entry]:
    """Return the entries of a safetensors file by tensor."""
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:  # opening checks offsets, shapes and sizes
            size = int.from_bytes(file.read(8), "little")
            header: Mapping[str, Any] = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {one_line(error)}; copy it again") from None
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        entries[name] = (entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
    return entries
