"""Images in MindRecord shards: a folder for each split, with a listing of its files and their images.

MindRecord itself notices neither a missing shard nor changed bytes: the listing holds the size of every file, and the
SHA-256 of every file and image. Images are found by their path relative to data.root, in any split.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.digests import content_digests
from src.data.image_files import ImageFiles, Loading, checked
from src.runtime.errors import InputError
from src.runtime.files import file_digest

LISTING = "listing.json"
PART = ".part"  # suffix of a folder that is not complete yet
_FIX = "rewrite it with scripts/prepare_mindrecord.sh"


class Listing(NamedTuple):
    """The files of a split's folder with their SHA-256; the images of each shard by row, as path and SHA-256."""

    files: dict[str, str]
    shards: dict[str, list[tuple[str, str]]]


class Place(NamedTuple):
    """The place of an image: `row` counts over all shards; digest: the SHA-256 of its file, hexadecimal."""

    row: int
    shard: Path
    digest: str


class Shards:
    """All splits under a folder: `paths` of the shards, and `places` of images by path relative to `root`."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Read the listings. Raises InputError naming a listing or shard that is missing or damaged."""
        self.folder, self._root = folder, root
        self.paths: list[Path] = []
        self.places: dict[str, Place] = {}
        rows = 0
        for listing in sorted(folder.glob(f"*/{LISTING}")):
            if listing.parent.suffix == PART:
                continue
            for name, images in read_listing(listing).shards.items():
                self.paths.append(listing.parent / name)
                for file, digest in images:
                    self.places[file] = Place(rows, self.paths[-1], digest)
                    rows += 1
        if not self.paths:
            raise InputError(f"{folder}: no MindRecord shards; write them with scripts/prepare_mindrecord.sh")

    def name(self, file: Path) -> str:
        """Return the path by which `places` knows an image file."""
        return os.path.relpath(file, self._root)

    def scan(self, files: Iterable[Path]) -> dict[Path, str]:
        """Return the files that are in no shard, with a reason, in the given order."""
        return {file: f"not in {self.folder}" for file in files if self.name(file) not in self.places}


class ShardImages(ImageFiles):
    """`files` read from shards. The files themselves need not exist."""

    def __init__(self, files: Sequence[Path], shards: Shards) -> None:
        super().__init__(files)
        self._shards = shards
        self._places = [shards.places[shards.name(file)] for file in files]

    def digests(self, memory: Path) -> np.ndarray:
        """Return the SHA-256 of each image from the listings, uint8 [n, 32], after checking the shards."""
        for folder in sorted({place.shard.parent for place in self._places}):
            check_shards(folder, memory)
        digests = b"".join(bytes.fromhex(place.digest) for place in self._places)
        return np.frombuffer(digests, np.uint8).reshape(-1, 32)

    def stream(self, order: Sequence[int]) -> Loading:
        """Stream the images; only the rows asked for are read. Raises InputError naming a damaged shard."""
        import mindspore.dataset as ds

        total, paths = len(self._shards.places), [str(path) for path in self._shards.paths]
        for start in range(0, len(order), total):  # MindRecord takes no more indices than it has rows
            indices = order[start : start + total]
            sampler = ds.SubsetSampler([self._places[index].row for index in indices])  # rows in their order
            try:
                data = ds.MindDataset(paths, ["image"], num_parallel_workers=2, sampler=sampler)
                rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True)
                with contextlib.ExitStack() as ending:
                    ending.callback(rows.stop)
                    for index, (image,) in zip(indices, rows, strict=True):
                        file, place = self.files[index], self._places[index]
                        problem = f"{place.shard}: damaged at {file}; {_FIX}"
                        yield file, partial(checked, image.tobytes, bytes.fromhex(place.digest), problem)
            except (RuntimeError, ValueError) as error:  # ValueError: fewer rows than indices
                reason = mindrecord_reason(error)
                raise InputError(f"{self._shards.folder}: damaged shards ({reason}); {_FIX}") from error


def mindrecord_reason(error: Exception) -> str:
    """Return the line of MindRecord's long messages that says what is wrong."""
    lines = str(error).splitlines()
    return next((line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR]")), lines[0])


def write_listing(folder: Path, shards: dict[str, list[tuple[str, str]]]) -> None:
    """List the files of a folder with their sizes and digests, and the images of its shards."""
    files = {path.name: [path.stat().st_size, file_digest(path)] for path in sorted(folder.iterdir())}
    (folder / LISTING).write_text(json.dumps({"files": files, "shards": shards}))


def read_listing(path: Path) -> Listing:
    """Read the listing of a split. Raises InputError naming it, or a file beside it that is missing or resized."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if any(isinstance(entry, int) for entry in tree["files"].values()):
            raise InputError(f"{path}: was written by an older version, without digests of the images; {_FIX}")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in tree["files"].items()}
        shards = {
            str(name): [(str(file), bytes.fromhex(digest).hex()) for file, digest in rows]
            for name, rows in tree["shards"].items()
        }
        lengths = {len(digest) for images in shards.values() for _, digest in images}
        if not lengths <= {64} or not shards.keys() <= files.keys() or "/" in "".join(files):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged or unreadable ({type(error).__name__}); {_FIX}") from None
    for name, (size, _) in files.items():
        shard = path.parent / name
        found = shard.stat().st_size if shard.is_file() else None
        if found != size:
            state = "missing" if found is None else f"has {found:,} bytes, not {size:,}"
            raise InputError(f"{shard}: {state}; restore it, or {_FIX}")
    return Listing({name: digest for name, (_, digest) in files.items()}, shards)


def check_shards(folder: Path, memory: Path) -> Listing:
    """Read the listing of a split's folder. Raises InputError if any byte of its files has changed."""
    listing = read_listing(folder / LISTING)
    found = content_digests([folder / name for name in listing.files], memory)
    for (name, digest), seen in zip(listing.files.items(), found, strict=True):
        if seen.tobytes().hex() != digest:
            raise InputError(f"{folder / name}: has changed since it was written; restore it, or {_FIX}")
    return listing
