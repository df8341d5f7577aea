"""The features of a frozen encoder: computed once, kept in a memory-mapped file, and reused by every stage.

B images per batch, N image tokens, C channels of the encoder. One file holds the float16 array [images, N, C].
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data.images import ImageSource
from src.errors import InputError
from src.files import whole_file

_FLUSH_BATCHES = 32  # what a kill -9 can lose


class FeatureSource:
    """The rows of a feature file, with the interface of ImageSource."""

    def __init__(self, path: Path) -> None:
        """Map `path`, float16 [images, N, C]. Raises InputError if it is not such a file."""
        try:
            self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a feature file ({error}); delete it, it is computed anew") from None
        if self._rows.ndim != 3 or self._rows.dtype != np.float16:
            raise InputError(f"{path}: not float16 of three axes; delete it, it is computed anew")
        self.path = path
        self.shape = self._rows.shape

    def batches(self, index_batches: Sequence[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """For each array of indices [B] the features float16 [B,N,C], rows in that order."""
        for batch in index_batches:
            yield self._rows[np.asarray(batch)]


def build_feature_cache(
    folder: Path,
    *,
    key: Mapping[str, str],
    files: Sequence[Path],
    source: ImageSource,
    encode: Callable[[np.ndarray], np.ndarray],
    tokens: int,
    channels: int,
    batch: int,
) -> FeatureSource:
    """The features of `files` in `folder`: read if they are complete, computed or completed otherwise.

    What was computed stays when the program is interrupted. A second process that needs the same file waits.

    Args:
        key: names weights and preprocessing; with the names and sizes of the files it names the cache file.
        files: the images, row by row.
        source: the images, index i being files[i].
        encode: images float32 [batch,3,H,W] -> features [batch,N,C]; always called with full batches.
        tokens, channels: N and C.
        batch: images per call.
    Raises:
        InputError: too little space, a folder that cannot be written, or features that float16 cannot hold.
    """
    key = dict(key)
    final = feature_file(folder, key, files)
    name = final.stem
    shape = (len(files), tokens, channels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{name}.lock"):
            if not final.exists():
                _compute(folder, name, key, shape, files, source, encode, batch)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); choose another folder") from error
    cache = FeatureSource(final)
    if cache.shape != shape:
        raise InputError(f"{final}: holds {cache.shape} instead of {shape}; delete it, it is computed anew")
    return cache


def feature_file(folder: Path, key: Mapping[str, str], files: Sequence[Path]) -> Path:
    """Where the features of `files` are kept; it exists when they are complete."""
    return folder / f"features-{_digest(dict(key), files)}.npy"


def _compute(
    folder: Path,
    name: str,
    key: dict[str, str],
    shape: tuple[int, int, int],
    files: Sequence[Path],
    source: ImageSource,
    encode: Callable[[np.ndarray], np.ndarray],
    batch: int,
) -> None:
    """Fill {name}.part from the row that {name}.json records, then give it its final name."""
    part, progress = folder / f"{name}.part", folder / f"{name}.json"
    done = _rows_done(part, progress, shape)
    _check_space(folder, part, shape)
    rows = np.lib.format.open_memmap(part, "r+" if done else "w+", np.float16, None if done else shape)

    def record() -> None:
        rows.flush()
        with whole_file(progress) as partial:
            partial.write_text(json.dumps({"rows": done, "key": key}))

    starts = range(done, len(files), batch)
    # The last batch is filled up with its last image: a smaller one would be compiled for once more.
    indices = [np.minimum(np.arange(start, start + batch), len(files) - 1) for start in starts]
    images = source.batches(indices)
    try:
        with tqdm(desc="encoding images", unit="image", total=len(files), initial=done, disable=None) as bar:
            for number, pixels in enumerate(images, 1):
                count = min(batch, len(files) - done)
                features = np.asarray(encode(pixels))[:count]  # [count,N,C]
                _check_range(features, files[done : done + count])
                rows[done : done + count] = features
                done += count
                bar.update(count)
                if number % _FLUSH_BATCHES == 0:
                    record()
    finally:
        images.close()
        record()
    os.replace(part, folder / f"{name}.npy")


def _digest(key: dict[str, str], files: Sequence[Path]) -> str:
    """16 hexadecimal digits. The last three parts of a path tell splits apart, and survive a move of the data."""
    try:
        listing = [("/".join(file.parts[-3:]), file.stat().st_size) for file in files]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); restore the image") from None
    return hashlib.sha256(json.dumps([sorted(key.items()), listing]).encode()).hexdigest()[:16]


def _rows_done(part: Path, progress: Path, shape: tuple[int, int, int]) -> int:
    """How many rows of `part` can be kept: 0 unless both files are there and fit."""
    try:
        done = json.loads(progress.read_text())["rows"]
        rows = np.load(part, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return 0
    fits = rows.shape == shape and rows.dtype == np.float16 and type(done) is int and 0 <= done <= shape[0]
    return done if fits else 0


def _check_space(folder: Path, part: Path, shape: tuple[int, int, int]) -> None:
    # The file has holes until it is filled: a full disk would end the program with SIGBUS, not with an error.
    written = part.stat().st_blocks * 512 if part.exists() else 0
    needed = int(np.prod(shape, dtype=np.int64)) * 2 + 4096 - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {needed:,} bytes are needed for the features of {shape[0]:,} images, {free:,} are free; "
            "make room, or move the feature cache to another disk"
        )


def _check_range(features: np.ndarray, files: Sequence[Path]) -> None:
    # Refused, not clipped: a trained encoder stays below 1,000, so the weights or the scaling of the pixels are wrong.
    limit = float(np.finfo(np.float16).max)
    bad = ~(np.abs(features) <= limit).reshape(len(features), -1).all(axis=1)  # [count], true for NaN too
    if bad.any():
        raise InputError(
            f"{files[int(bad.argmax())]}: its features are not finite or above {limit:g}, which float16 cannot hold; "
            "encoder.checkpoint and the scaling of the pixels do not fit each other"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"features: waiting for the process that computes {path.stem}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
