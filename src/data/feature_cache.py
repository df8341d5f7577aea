"""A feature file that several workers fill: its parts, what is done of it, and the space it needs.

The rows are written into {name}.part; {name}.done has one byte for each row, 1 when the row is on the disk. Batches are
dealt to the workers one by one, in turn, so that the rest after an interruption is shared evenly by any number of them.

B images per batch, N image tokens, C channels of the encoder.
"""

import contextlib
import ctypes
import errno
import math
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from src.runtime.errors import InputError
from src.runtime.files import whole_file
from src.runtime.progress import Progress


@dataclass(frozen=True)
class FeatureCache:
    """The features of `files`, float16 of `shape` [images, N, C], in the file `path` once they are complete.

    `digests`: SHA-256 of the bytes of each file, 32 bytes of each. `batch` images are encoded in one call.
    """

    path: Path
    files: tuple[Path, ...]
    digests: bytes
    shape: tuple[int, int, int]
    batch: int

    @property
    def part(self) -> Path:
        """The file before it is complete."""
        return self.path.with_suffix(".part")

    @property
    def done(self) -> Path:
        """Which rows of `part` are computed, one byte each."""
        return self.path.with_suffix(".done")

    def bytes_missing(self) -> int:
        """What the file will take of the disk beyond what it has."""
        if self.path.exists():
            return 0
        taken = self.part.stat().st_blocks * 512 if self.part.exists() else 0
        return 2 * math.prod(self.shape) - taken

    def prepare(self) -> None:
        """Make `part` and `done`, unless they are there from an interrupted run; one worker does, the others wait."""
        if self._can_go_on():
            return
        self.done.unlink(missing_ok=True)
        rows = np.lib.format.open_memmap(self.part, "w+", np.float16, self.shape)
        _reserve(self.part, rows.offset + rows.nbytes)
        with whole_file(self.done) as partial:
            partial.write_bytes(bytes(len(self.files)))

    def fill(
        self,
        images: Callable[[Sequence[np.ndarray]], Generator[np.ndarray, None, None]],
        encode: Callable[[np.ndarray], np.ndarray],
        rank: int,
        size: int,
    ) -> None:
        """Compute what is missing of the share of worker `rank` of `size`; all may do so at the same time.

        Each batch is kept as soon as it is computed: an error or a kill at any moment loses the batch in hand.

        Args:
            images: index arrays [B] -> pixels float32 [B,3,H,W] of each, index i being files[i] (ImageSource.batches).
            encode: images float32 [B,3,H,W] -> features [B,N,C]; always called with full batches.
        Raises:
            InputError: an image that cannot be read, or features that float16 cannot hold.
        """
        total, done = len(self.files), np.fromfile(self.done, np.uint8) == 1
        starts = [s for s in range(0, total, self.batch)[rank::size] if not done[s : s + self.batch].all()]
        # The last batch is filled up with its last image: a smaller one would be compiled for once more.
        batches = images([np.minimum(np.arange(start, start + self.batch), total - 1) for start in starts])
        offset = np.load(self.part, mmap_mode="r", allow_pickle=False).offset
        row_bytes = 2 * self.shape[1] * self.shape[2]
        bar = Progress("encoding images", len(starts), "batch", shown=rank == 0)
        with contextlib.closing(batches), _open_synced(self.part) as rows, _open_synced(self.done) as marks:
            for start, pixels in zip(bar.over(starts), batches):
                count = min(self.batch, total - start)
                features = np.asarray(encode(pixels))[:count]  # [count,N,C]
                _check_range(features, self.files[start : start + count])
                _write(rows, offset + start * row_bytes, features.astype(np.float16).tobytes())
                _write(marks, start, b"\1" * count)

    def finish(self) -> None:
        """Give the file its final name, when all workers have filled their shares; one worker does."""
        missing = np.count_nonzero(np.fromfile(self.done, np.uint8) != 1)
        if missing:
            raise InputError(f"{self.part}: {missing} rows are missing: do the workers see one file system?")
        os.replace(self.part, self.path)
        self.done.unlink()

    def _can_go_on(self) -> bool:
        try:
            rows = np.load(self.part, mmap_mode="r", allow_pickle=False)
            marks = self.done.stat().st_size
        except (OSError, ValueError, EOFError):
            return False
        return rows.shape == self.shape and rows.dtype == np.float16 and marks == len(self.files)


def _open_synced(path: Path) -> BinaryIO:
    """Opened such that what is written is on the disk before the next write: rows come before their marks.

    Written, not mapped: a full disk is an error, not SIGBUS, and NFS sends the bytes of this worker, not whole pages.
    """
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_DSYNC))


def _write(file: BinaryIO, place: int, data: bytes) -> None:
    file.seek(place)
    file.write(data)
    file.flush()


def _reserve(path: Path, size: int) -> None:
    """Take the space on the disk at once, where the file system can: else it is taken as the file is filled.

    Linux' own call: where it cannot, os.posix_fallocate would write to every block, 99 GB for COCO.
    """
    with open(path, "r+b") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "fallocate"):
            failed = libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(size))
            if failed and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _check_range(features: np.ndarray, files: Sequence[Path]) -> None:
    # Refused, not clipped: a trained encoder stays below 1,000, so the weights or the scaling of the pixels are wrong.
    limit = float(np.finfo(np.float16).max)
    bad = ~(np.abs(features) <= limit).reshape(len(features), -1).all(axis=1)  # [count], true for NaN too
    if bad.any():
        raise InputError(
            f"{files[int(bad.argmax())]}: its features are not finite or above {limit:g}, which float16 cannot hold; "
            "encoder.checkpoint and the scaling of the pixels do not fit each other"
        )
