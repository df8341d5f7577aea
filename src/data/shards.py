"""Images in MindRecord shards: a folder for each split, with a listing of what each of its files holds.

MindRecord itself notices neither that a shard is missing nor that bytes have changed: the listing holds the size of
every file, and the SHA-256 of every file and image. Images are found by their path relative to data.root, in whatever
split.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.digests import content_digests
from src.runtime.errors import InputError
from src.runtime.files import file_digest

LISTING = "listing.json"
PART = ".part"  # the end of a folder's name before it is whole
_MEND = "write it anew with scripts/prepare_mindrecord.sh"


class Image(NamedTuple):
    """One image of a shard: its path relative to data.root, and the SHA-256 of its file, hexadecimal."""

    file: str
    digest: str


class Listing(NamedTuple):
    """The files of a split's folder with their SHA-256, and the images of each shard in the order of its rows."""

    files: dict[str, str]
    shards: dict[str, list[Image]]


class Place(NamedTuple):
    """Where an image is: `row` counts over all shards."""

    row: int
    shard: Path
    image: Image


class Shards:
    """All splits under a folder: `paths` of the shards, their `rows`, and `places` of images, by relative path."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Read the listings. Raises InputError naming a listing or shard that is missing or damaged."""
        self.folder, self._root = folder, root
        self.paths: list[Path] = []
        self.places: dict[str, Place] = {}
        self.rows = 0
        for listing in sorted(folder.glob(f"*/{LISTING}")):
            if listing.parent.suffix == PART:
                continue
            for name, images in read_listing(listing).shards.items():
                shard = listing.parent / name
                self.paths.append(shard)
                for image in images:
                    self.places[image.file] = Place(self.rows, shard, image)
                    self.rows += 1
        if not self.paths:
            raise InputError(f"{folder}: no MindRecord shards; write them with scripts/prepare_mindrecord.sh")

    def scan(self, files: Iterable[Path]) -> dict[Path, str]:
        """The files that are in no shard, with a reason, in the given order."""
        return {file: f"not in {self.folder}" for file in files if self._name(file) not in self.places}

    def place(self, file: Path) -> Place:
        """Where a file is that `scan` has not named."""
        return self.places[self._name(file)]

    def _name(self, file: Path) -> str:
        return relative_name(file, self._root)


class ShardImages:
    """`files`, read from shards, with the interface of ImageFiles. The files themselves need not exist."""

    def __init__(self, files: Sequence[Path], shards: Shards) -> None:
        self.files = list(files)
        self._folder = shards.folder
        self._paths = [str(path) for path in shards.paths]
        self._rows = shards.rows
        self._places = [shards.place(file) for file in files]

    def digests(self, memory: Path) -> np.ndarray:
        """SHA-256 of the bytes of each image, uint8 [n, 32], as the listings say; memory: as of `content_digests`.

        Errors: InputError naming a file whose bytes are not those that its listing was written with.
        """
        for folder in sorted({place.shard.parent for place in self._places}):
            check_shards(folder, memory)
        digests = b"".join(bytes.fromhex(place.image.digest) for place in self._places)
        return np.frombuffer(digests, np.uint8).reshape(-1, 32)

    def stream(self, order: Sequence[int]) -> Iterator[tuple[Path, Callable[[], bytes]]]:
        """For each index of `order` the file and what gives its bytes.

        Only the rows asked for are read. Errors: InputError naming the shard, also from what gives the bytes.
        """
        for start in range(0, len(order), self._rows):  # MindRecord takes no more indices than it has rows
            yield from self._stream(order[start : start + self._rows])

    def _stream(self, order: Sequence[int]) -> Iterator[tuple[Path, Callable[[], bytes]]]:
        import mindspore.dataset as ds

        places = [self._places[index] for index in order]
        sampler = ds.SubsetSampler([place.row for place in places])  # rows in the order of its indices
        try:
            data = ds.MindDataset(self._paths, ["image"], num_parallel_workers=2, sampler=sampler)
            rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True)
            with contextlib.ExitStack() as ending:
                ending.callback(rows.stop)
                for index, place, (image,) in zip(order, places, rows, strict=True):
                    yield self.files[index], _checked(image.tobytes(), place)
        except (RuntimeError, ValueError) as error:  # ValueError: fewer rows than indices
            raise InputError(f"{self._folder}: damaged shards ({mindrecord_reason(error)}); {_MEND}") from error


def _checked(data: bytes, place: Place) -> Callable[[], bytes]:
    def load() -> bytes:
        if hashlib.sha256(data).hexdigest() != place.image.digest:
            raise InputError(f"{place.shard}: damaged at {place.image.file}; {_MEND}")
        return data

    return load


def mindrecord_reason(error: Exception) -> str:
    """The line of MindRecord's long messages that says what is wrong."""
    lines = str(error).splitlines()
    return next((line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR]")), lines[0])


def relative_name(file: Path, root: Path) -> str:
    """How a listing names a file: data.root may move."""
    return os.path.relpath(file, root)


def write_listing(folder: Path, shards: dict[str, list[Image]]) -> None:
    """Write what the files of a folder hold, with their sizes and digests."""
    files = {path.name: [path.stat().st_size, file_digest(path)] for path in sorted(folder.iterdir())}
    (folder / LISTING).write_text(json.dumps({"files": files, "shards": shards}))


def read_listing(path: Path) -> Listing:
    """The listing of a split.

    Errors: InputError naming the listing, or a file beside it that is missing or has another size.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if any(isinstance(entry, int) for entry in tree["files"].values()):
            raise InputError(f"{path}: is of an older version, without digests of the images; {_MEND}")
        files = {str(name): str(digest) for name, (_, digest) in tree["files"].items()}
        sizes = {str(name): int(size) for name, (size, _) in tree["files"].items()}
        shards = {
            str(name): [Image(str(file), bytes.fromhex(digest).hex()) for file, digest in rows]
            for name, rows in tree["shards"].items()
        }
        whole = all(len(image.digest) == 64 for images in shards.values() for image in images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); {_MEND}") from None
    for name, size in sizes.items():
        shard = path.parent / name
        found = shard.stat().st_size if shard.is_file() else None
        if found != size:
            state = "missing" if found is None else f"has {found:,} bytes, not {size:,}"
            raise InputError(f"{shard}: {state}; restore it, or {_MEND}")
    if not whole or not shards.keys() <= sizes.keys() or any("/" in name for name in sizes):
        raise InputError(f"{path}: damaged; {_MEND}")
    return Listing(files, shards)


def check_shards(folder: Path, memory: Path) -> Listing:
    """The listing of a split's folder, of which every byte is as it was written; `content_digests` remembers that.

    Errors: InputError naming a file that is not.
    """
    listing = read_listing(folder / LISTING)
    found = content_digests([folder / name for name in listing.files], memory)
    for (name, digest), seen in zip(listing.files.items(), found, strict=True):
        if seen.tobytes().hex() != digest:
            raise InputError(f"{folder / name}: has other bytes than it was written with; restore it, or {_MEND}")
    return listing
