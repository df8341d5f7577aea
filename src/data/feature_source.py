"""The features of a frozen encoder: computed once by all workers, kept in a memory-mapped file, reused by every stage.

B images per batch, N image tokens, C channels of the encoder. One file holds the float16 array [images, N, C].
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from src.data.feature_cache import FeatureCache
from src.runtime.errors import InputError
from src.runtime.files import lock, writing
from src.runtime.workers import Workers

_WAIT = 1.0  # seconds between checks whether another run has finished
_ROOM = "free disk space, or set output_root to another folder"
_FIX = "delete it, and it will be recomputed"


class FeatureSource:
    """The rows of a feature file, with the interface of ImageSource."""

    def __init__(self, path: Path) -> None:
        """Map `path`, float16 [images, N, C]. Raises InputError if it is not such a file."""
        try:
            self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if self._rows.ndim != 3 or self._rows.dtype != np.float16:
                raise ValueError("not a float16 array of three axes")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a feature file ({error}); {_FIX}") from None
        self.path = path
        self.shape = self._rows.shape

    def batches(self, index_batches: Sequence[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Yield the features float16 [B,N,C] of each array of indices [B], rows in that order."""
        for batch in index_batches:
            yield self._rows[np.asarray(batch)]


def feature_path(folder: Path, key: Mapping[str, str], digests: np.ndarray) -> Path:
    """Name the cache file of images by `key` (weights, preprocessing and reader) and digests [images, 32]."""
    name = hashlib.sha256(json.dumps(sorted(key.items())).encode() + digests.tobytes()).hexdigest()[:16]
    return folder / f"features-{name}.npy"


def check_space(caches: Sequence[FeatureCache]) -> None:
    """Raise InputError if the disk has no room for the missing parts of the caches, which are in one folder."""
    folder = caches[0].path.parent
    with writing(folder, _ROOM):
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(cache.bytes_missing() for cache in caches)
        free = shutil.disk_usage(folder).free
    if needed > free:
        images = sum(len(cache.files) for cache in caches)
        space = f"need {needed / 1e9:,.1f} GB more, {free / 1e9:,.1f} GB are free"
        raise InputError(
            f"{folder}: the features of {images:,} images {space}; free disk space, or set output_root to another disk"
        )


def load_features(cache: FeatureCache, fill: Callable[[FeatureCache], None], workers: Workers) -> FeatureSource:
    """Read the features of a cache, which all workers compute or complete first if needed, with `fill` for their share.

    Computed features stay when a worker ends, and another number of workers may resume. A second run that needs the
    same file waits. Raises InputError if a folder cannot be written or a file does not hold features.
    """
    # The first worker looks for all: other nodes may see a change of a shared folder late.
    if workers.any(workers.is_first and not cache.path.exists()):
        with writing(cache.path.parent, _ROOM), _locked(cache, workers):
            missing = workers.is_first and not cache.path.exists()  # the run that held the lock may have made it
            if missing:
                cache.prepare()
            if workers.any(missing):
                fill(cache)
                workers.wait()
                if workers.is_first:
                    cache.finish()
                workers.wait()
    features = FeatureSource(cache.path)
    if features.shape != cache.shape:
        raise InputError(f"{cache.path}: holds {features.shape} instead of {cache.shape}; {_FIX}")
    return features


@contextlib.contextmanager
def _locked(cache: FeatureCache, workers: Workers) -> Iterator[None]:
    """Let one run at a time compute the features; its first worker holds the lock as long as the process lives."""
    with open(cache.path.with_suffix(".lock"), "w") if workers.is_first else contextlib.nullcontext() as file:
        waited = False
        while workers.any(file is not None and not lock(file)):  # polled: one long wait would time out
            if workers.is_first and not waited:
                print(f"features: waiting for the process that computes {cache.path.stem}", file=sys.stderr)
            waited = True
            time.sleep(_WAIT)
        yield
