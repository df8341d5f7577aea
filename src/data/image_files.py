"""Image files by index."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from src.data.digests import content_digests
from src.data.photographs import read_image_file
from src.runtime.errors import InputError

Loading = Iterator[tuple[Path, Callable[[], bytes]]]


class ImageFiles:
    """`files` by index; subclasses read their bytes from shards (ShardImages), or check them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def digests(self, memory: Path) -> np.ndarray:
        """Return the SHA-256 of each file, uint8 [n, 32]; memory: see `content_digests`."""
        return content_digests(self.files, memory)

    def stream(self, order: Sequence[int]) -> Loading:
        """Yield the file at each index of `order`, with a function that reads its bytes or raises UnusableImage."""
        for index in order:
            yield self.files[index], partial(read_image_file, self.files[index])


class UnchangedImages(ImageFiles):
    """`images` whose bytes must still have `expected` digests, uint8 [n, 32], when they are read."""

    def __init__(self, images: ImageFiles, expected: np.ndarray) -> None:
        super().__init__(images.files)
        self._images, self._expected = images, expected

    def stream(self, order: Sequence[int]) -> Loading:
        """Stream the images; reading one that has changed raises InputError."""
        for index, (file, load) in zip(order, self._images.stream(order)):
            problem = f"{file}: has changed since this run started; restart the run"
            yield file, partial(checked, load, self._expected[index].tobytes(), problem)


def checked(load: Callable[[], bytes], digest: bytes, problem: str) -> bytes:
    """Return the bytes that `load` gives if they have a SHA-256; else raise InputError saying `problem`."""
    data = load()
    if hashlib.sha256(data).digest() != digest:
        raise InputError(problem)
    return data
