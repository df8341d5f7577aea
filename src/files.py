"""Files that are written whole or not at all, by one process at a time, and their digests."""

import contextlib
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it to `path` at the end: no reader ever sees half a file."""
    partial = path.with_name(path.name + ".part")
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time through (a killed one lets go), where the file system knows locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return stream_digest(file).hex()


def stream_digest(file: io.RawIOBase) -> bytes:
    """SHA-256 of what is left to read of an open file. Threads do this at the same time."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.digest()
