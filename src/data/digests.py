"""SHA-256 of files' bytes, remembered: a start reads no file again that has not changed, as git's index does.

A memory belongs to one list of paths. It holds size, times and inode of each file when it was read, and the digest.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time, stream_digest, whole_file
from src.runtime.progress import Progress
from src.runtime.threads import in_order

_THREADS = 8
# Nanoseconds. A file changed so shortly before it was read may change again and keep its times: some file systems keep
# them to 2 seconds, and a file server's clock is not this one's.
_RACY = 10 * 10**9
_STATE = ["size", "mtime", "ctime", "inode"]
_ENTRY = np.dtype([(name, "<u8") for name in _STATE] + [("digest", "u1", 32)])
_UNKNOWN = 2**64 - 1  # as a size: of no file


def content_digests(files: Sequence[Path], memory: Path) -> np.ndarray:
    """The digest of each file, uint8 [n, 32], in order.

    memory: a folder for what is remembered. What is damaged in it, or cannot be written, costs a reading, no more.
    Raises InputError naming a file that cannot be read.
    """
    paths = [os.path.abspath(file) for file in files]
    store = memory / f"digests-{hashlib.sha256(os.fsencode(chr(0).join(paths))).hexdigest()[:16]}.bin"
    entries = _remembered(store, len(paths))
    with _naming_files():
        now = np.array([_state(os.stat(path)) for path in paths], np.uint64).reshape(-1, len(_STATE))
    changed = np.zeros(len(paths), bool)
    for place, name in enumerate(_STATE):
        changed |= entries[name] != now[:, place]
    if not changed.any():
        return entries["digest"]
    racy = entries.copy()
    rows = np.flatnonzero(changed)
    reading = in_order(_read, ((paths[row],) for row in rows), _THREADS)
    bar = Progress("reading image files", len(rows), "file")
    try:
        with _naming_files():
            for row, (entry, trusted) in zip(bar.over(rows), reading):
                entries[row] = racy[row] = entry
                if not trusted:
                    racy[row]["size"] = _UNKNOWN
    finally:
        _remember(store, racy)
    return entries["digest"]


def state_key(found: os.stat_result) -> int:
    """64 bits of a file's size, times and inode; 0 where it may change and keep them."""
    state = _state(found)
    if max(state[1:3]) >= time.time_ns() - _RACY:
        return 0
    return int.from_bytes(hashlib.blake2b(repr(state).encode(), digest_size=8).digest(), "big")


def _read(path: str) -> tuple[tuple, bool]:
    """The entry of a file, and whether it may be trusted as long as the file's state stays."""
    started = time.time_ns()
    with open(path, "rb", buffering=0) as file:
        state = _state(os.fstat(file.fileno()))
        digest = np.frombuffer(stream_digest(file), np.uint8)
    return (*state, digest), max(state[1:3]) < started - _RACY


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns % 2**64, found.st_ctime_ns % 2**64, found.st_ino


def _remembered(store: Path, count: int) -> np.ndarray:
    """Entries [count]; those that are not known have a size that no file has."""
    with contextlib.suppress(OSError):
        data = store.read_bytes()
        check, body = data[:32], data[32:]
        if len(body) == count * _ENTRY.itemsize and hashlib.sha256(body).digest() == check:
            return np.frombuffer(body, _ENTRY).copy()
    entries = np.zeros(count, _ENTRY)
    entries["size"] = _UNKNOWN
    return entries


def _remember(store: Path, entries: np.ndarray) -> None:
    body = entries.tobytes()
    with contextlib.suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(store.parent), whole_file(store) as partial:
            partial.write_bytes(hashlib.sha256(body).digest() + body)


@contextlib.contextmanager
def _naming_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); restore the file") from None
