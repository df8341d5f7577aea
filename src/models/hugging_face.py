"""Read the weights of a pretrained model's folder in Hugging Face's layout: safetensors, in one file or in shards.

The files are not trusted: paths stay within the folder, and shapes, types and sizes are checked before they are used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from src.data.model_folder import read_json
from src.runtime.errors import InputError, one_line
from src.runtime.files import file_digest

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_Entry = tuple[str, tuple[int, ...], int, int]  # type, shape, first byte, and the byte behind the last
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
        if (self.folder / INDEX).is_file() and not (self.folder / WEIGHTS).is_file():  # transformers' order
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

    def digest(self) -> str:
        """Return the SHA-256 of all files, hexadecimal."""
        return hashlib.sha256("".join(file_digest(path) for path in self._paths()).encode()).hexdigest()

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._entries)

    def dtype(self, name: str) -> str:
        """Return a tensor's type in the file: F32, F16, BF16 or another."""
        return self._entries[name][0]

    def raw(self, name: str) -> bytes:
        """Return the bytes of a tensor."""
        _, _, start, end = self._entries[name]
        with self._files[name].open("rb") as file:
            file.seek(start)
            return file.read(end - start)

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
        dtype, _, start, _ = self._entries[name]
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
        start, end = entry["data_offsets"]
        entries[name] = (entry["dtype"], tuple(entry["shape"]), 8 + size + start, 8 + size + end)
    return entries


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write float32 arrays as a safetensors file."""
    entries = {name: ("F32", array.shape) for name, array in arrays.items()}
    write_weights(path, entries, lambda name: arrays[name].astype("<f4").tobytes())


def write_weights(path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], data: Callable[[str], bytes]) -> None:
    """Write a safetensors file of tensors with these types (F32, F16, BF16, ...) and shapes, one at a time.

    safetensors' own writer for NumPy lacks bfloat16, and its files are readable by their owner alone. data: the bytes
    of a tensor by its name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + int(np.prod(shape)) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in entries:
            file.write(data(name))
