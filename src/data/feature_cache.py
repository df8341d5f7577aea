"""A feature file that several workers fill: its parts, its completed rows, and the space it needs.

The rows are written to {name}.part; {name}.done has one byte for each row, 1 when the row is on the disk. Batches are
dealt to the workers in turn, so that any number of workers shares the rest evenly after an interruption.

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
    """The features of `files`, float16 of `shape` [images, N, C], in the file `path` once they are complete."""

    path: Path
    files: tuple[Path, ...]
    digests: bytes  # SHA-256 of each file, 32 bytes each
    shape: tuple[int, int, int]
    batch: int  # images encoded in one call

    @property
    def part(self) -> Path:
        """The file while it is incomplete."""
        return self.path.with_suffix(".part")

    @property
    def done(self) -> Path:
        """The marks of the rows of `part` that are complete, one byte each."""
        return self.path.with_suffix(".done")

    def bytes_missing(self) -> int:
        """Return the disk space that the file still needs."""
        if self.path.exists():
            return 0
        taken = self.part.stat().st_blocks * 512 if self.part.exists() else 0
        return 2 * math.prod(self.shape) - taken

    def prepare(self) -> None:
        """Make `part` and `done`, unless an interrupted run left them; one worker does, the others wait."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            rows = np.load(self.part, mmap_mode="r", allow_pickle=False)
            if (rows.shape, rows.dtype, self.done.stat().st_size) == (self.shape, np.float16, len(self.files)):
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

        Each batch is kept as soon as it is computed: an error or a kill loses only the batch being computed.
        Raises InputError if an image cannot be read, or float16 cannot hold the features.

        Args:
            images: index arrays [B] -> pixels float32 [B,3,H,W] of each, index i being files[i] (ImageSource.batches).
            encode: images float32 [B,3,H,W] -> features [B,N,C]; always called with full batches.
        """
        total, done = len(self.files), np.fromfile(self.done, np.uint8) == 1
        starts = [s for s in range(0, total, self.batch)[rank::size] if not done[s : s + self.batch].all()]
        # The last batch repeats its last image: a smaller batch would need another compilation.
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
        """Give the file its final name when all workers have filled their shares; one worker does."""
        missing = np.count_nonzero(np.fromfile(self.done, np.uint8) != 1)
        if missing:
            raise InputError(f"{self.part}: {missing} rows are missing; check that all workers share one file system")
        os.replace(self.part, self.path)
        self.done.unlink()


def _open_synced(path: Path) -> BinaryIO:
    """Open a file so that each write is on the disk before the next: rows come before their marks.

    Written, not mapped: a full disk is an error, not SIGBUS, and NFS sends the bytes of this worker, not whole pages.
    """
    return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_DSYNC))


def _write(file: BinaryIO, place: int, data: bytes) -> None:
    file.seek(place)
    file.write(data)
    file.flush()


def _reserve(path: Path, size: int) -> None:
    """Take the disk space at once if the file system can; otherwise it is taken as the file is filled.

    Linux' own call: os.posix_fallocate would fall back to writing every block, 99 GB for COCO.
    """
    with open(path, "r+b") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "fallocate") and libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(code, os.strerror(code), str(path))


def _check_range(features: np.ndarray, files: Sequence[Path]) -> None:
    # Refused, not clipped: a trained encoder stays below 1,000, so the weights or the scaling of the pixels are wrong.
    limit = float(np.finfo(np.float16).max)
    bad = ~(np.abs(features) <= limit).reshape(len(features), -1).all(axis=1)  # [count], true for NaN too
    if bad.any():
        raise InputError(
            f"{files[int(bad.argmax())]}: its features are not finite or above {limit:g}, which float16 cannot hold; "
            "check that encoder.checkpoint and the scaling of the pixels match"
        )
