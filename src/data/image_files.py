"""Image files by index."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from src.data.digests import content_digests
from src.data.photographs import read_image_file
from src.runtime.errors import InputError

Loading = Iterator[tuple[Path, Callable[[], bytes]]]


class Images(Protocol):
    """`files` by index: as files, in shards (ShardImages), or checked."""

    files: list[Path]

    def stream(self, order: Sequence[int]) -> Loading:
        """For each index of `order` the file and what gives its bytes."""


class ImageFiles:
    """`files` by index."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def digests(self, memory: Path) -> np.ndarray:
        """SHA-256 of each file, uint8 [n, 32]; `content_digests`."""
        return content_digests(self.files, memory)

    def stream(self, order: Sequence[int]) -> Loading:
        """For each index of `order` the file and what reads its bytes, which raises UnusableImage."""
        for index in order:
            yield self.files[index], partial(read_image_file, self.files[index])


class UnchangedImages:
    """`images` whose bytes must still have these digests, uint8 [n, 32], when they are read."""

    def __init__(self, images: Images, digests: np.ndarray) -> None:
        self.files = images.files
        self._images, self._digests = images, digests

    def stream(self, order: Sequence[int]) -> Loading:
        """For each index of `order` the file and what gives its bytes, or InputError where they have changed."""
        for index, (file, load) in zip(order, self._images.stream(order)):
            yield file, partial(_unchanged, file, load, self._digests[index].tobytes())


def _unchanged(file: Path, load: Callable[[], bytes], digest: bytes) -> bytes:
    data = load()
    if hashlib.sha256(data).digest() != digest:
        raise InputError(f"{file}: has changed since this run started; start it again")
    return data
