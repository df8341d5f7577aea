"""Files that are written whole or not at all, by one process at a time, and their digests."""

import contextlib
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]  # of the repository, which may consist of links


def given_path(text: str) -> Path:
    """A path of the command line, where the shell may have left ~ (as behind = or @)."""
    return Path(os.path.expanduser(text))


def given_file(text: str) -> Path:
    """A file of the command line: of the working folder, or where it is not there, of the repository's root."""
    path = given_path(text)
    return ROOT / path if not os.path.exists(path) and os.path.exists(ROOT / path) else path


def from_root(text: str) -> str:
    """A path that a configuration's file names, where a relative one starts at the repository's root."""
    path = os.path.expanduser(text)
    return path if os.path.samefile(".", ROOT) else os.path.join(ROOT, path)


def to_root(text: str) -> str:
    """What `from_root` makes a path of the working folder from again."""
    path = os.path.abspath(text)
    if os.path.samefile(".", ROOT):
        return text
    return os.path.relpath(path, ROOT) if Path(path).is_relative_to(ROOT) else path


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


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; only \\n, \\r\\n and \\r end one.

    str.splitlines would also split at U+2028, U+0085 and the like, which JSON strings and file names may hold.
    Raises OSError and UnicodeDecodeError.
    """
    return path.read_text(encoding="utf-8-sig").split("\n")
