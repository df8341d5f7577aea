"""SHA-256 digests of files, cached: like git's index, a start reads no file again that has not changed.

A cache belongs to one list of paths. It holds size, times and inode of each file when it was read, and the digest.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time, stream_digest, whole_file
from src.runtime.progress import Progress
from src.runtime.threads import in_order

_THREADS = 8
# Nanoseconds. A file changed so shortly before it was read may change again and keep its times: some file systems keep
# them to 2 seconds, and a file server's clock differs from the local one.
_RACY = 10 * 10**9
_ENTRY = np.dtype([("state", "<u8", 4), ("digest", "u1", 32)])
_UNKNOWN = 2**64 - 1  # a size that no file has


def content_digests(files: Sequence[Path], memory: Path) -> np.ndarray:
    """Return the digest of each file, uint8 [n, 32], in order. Raises InputError naming a file that cannot be read.

    memory: a folder for the cache. A damaged cache, or one that cannot be written, only costs reading the files.
    """
    paths = [os.path.abspath(file) for file in files]
    store = memory / f"digests-{hashlib.sha256(os.fsencode(chr(0).join(paths))).hexdigest()[:16]}.bin"
    before = _remembered(store, len(paths))
    entries, kept = before.copy(), before.copy()
    try:
        now = np.array([_state(os.stat(path)) for path in paths], np.uint64).reshape(-1, 4)
        rows = np.flatnonzero((entries["state"] != now).any(1))
        reading = in_order(_read, ((paths[row],) for row in rows), _THREADS)
        for row, (entry, trusted) in zip(Progress("reading image files", len(rows), "file").over(rows), reading):
            entries[row] = kept[row] = entry
            if not trusted:
                kept[row]["state"] = _UNKNOWN
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); restore the file") from None
    finally:
        if kept.tobytes() != before.tobytes():
            _remember(store, kept)
    return entries["digest"]


def state_key(found: os.stat_result) -> int:
    """Return 64 bits of a file's size, times and inode; 0 if it may still change and keep them."""
    state = _state(found)
    if max(state[1:3]) >= time.time_ns() - _RACY:
        return 0
    return int.from_bytes(hashlib.blake2b(repr(state).encode(), digest_size=8).digest(), "big")


def _read(path: str) -> tuple[tuple, bool]:
    """Return the entry of a file, and whether it stays valid while the file's state stays the same."""
    started = time.time_ns()
    with open(path, "rb", buffering=0) as file:
        state = _state(os.fstat(file.fileno()))
        return (state, np.frombuffer(stream_digest(file), np.uint8)), max(state[1:3]) < started - _RACY


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns % 2**64, found.st_ctime_ns % 2**64, found.st_ino


def _remembered(store: Path, count: int) -> np.ndarray:
    """Return the entries [count]; unknown ones have a size that no file has."""
    with contextlib.suppress(OSError):
        data = store.read_bytes()
        check, body = data[:32], data[32:]
        if len(body) == count * _ENTRY.itemsize and hashlib.sha256(body).digest() == check:
            return np.frombuffer(body, _ENTRY).copy()
    entries = np.zeros(count, _ENTRY)
    entries["state"] = _UNKNOWN
    return entries


def _remember(store: Path, entries: np.ndarray) -> None:
    body = entries.tobytes()
    with contextlib.suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(store.parent), whole_file(store) as partial:
            partial.write_bytes(hashlib.sha256(body).digest() + body)
