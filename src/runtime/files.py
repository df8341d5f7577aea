"""Paths that users type, files that several processes read and write, and digests of files."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from src.runtime.errors import InputError, one_line

ROOT = Path(__file__).absolute().parents[2]  # of the repository, which may consist of links
Row = TypeVar("Row")


def given_path(text: str) -> Path:
    """Read a path from the command line, where the shell may have left ~ (as behind = or @)."""
    return Path(os.path.expanduser(text))


def given_file(text: str) -> Path:
    """Find a file from the command line in the working folder or, failing that, in the repository."""
    path = given_path(text)
    return ROOT / path if not os.path.exists(path) and os.path.exists(ROOT / path) else path


def from_root(text: str) -> str:
    """Read a path from a configuration file, where a relative path starts at the repository's root."""
    path = os.path.expanduser(text)
    return path if os.path.samefile(".", ROOT) else os.path.join(ROOT, path)


def to_root(text: str) -> str:
    """Convert a path of the working folder back to one that `from_root` reads."""
    path = os.path.abspath(text)
    if os.path.samefile(".", ROOT):
        return text
    return os.path.relpath(path, ROOT) if Path(path).is_relative_to(ROOT) else path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, then rename it to `path`: no reader ever sees half a file."""
    partial = path.with_name(path.name + ".part")
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def writing(path: Path, fix: str = "choose another output_root") -> Iterator[None]:
    """Run a body that writes to `path`. Raises InputError naming it, the reason and the fix if that fails."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; {fix}") from error


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder to write to, and rename it to `output` if the body succeeds: no half-written folder remains.

    Raises InputError if `output` exists or cannot be written.
    """
    if output.exists():
        raise InputError(f"--output {output} exists; choose another folder, or delete it")
    with writing(output, "choose another --output"):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{output.name}-", dir=output.parent) as scratch:
            folder = Path(scratch, "new")
            folder.mkdir()
            yield folder
            folder.rename(output)


def lock(file: IO[Any] | int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds the lock.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into the body, where the file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def json_lines(path: Path, read: Callable[[Any], Row]) -> Iterator[Row]:
    """Yield `read` of the value of every line that ends; another process may be writing the last one.

    Raises OSError, and InputError naming a line that is not JSON or that `read` cannot read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    yield read(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    raise InputError(f"{path}: line {number} is damaged; remove it") from None


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append a line of JSON for each row, whole, beside other processes that do so too.

    A last line without its end was left by a killed process or by hand: it is completed if it is JSON, else removed.
    """
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)  # ASCII, even if a file name is not UTF-8
    with open(path, "a+b") as file:
        lock(file, wait=True)
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - 2**16)
            file.seek(start)
            tail = file.read(end - start)
        if torn := tail.rpartition(b"\n")[2]:
            try:
                json.loads(torn)
                data = b"\n" + data
            except ValueError:
                file.truncate(end - len(torn))
        file.write(data)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return stream_digest(file).hex()


def stream_digest(file: io.RawIOBase) -> bytes:
    """Return the SHA-256 of the rest of an open file. Several threads may call this at once."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.digest()


def read_text_lines(path: Path, missing: str, fix: str) -> list[str]:
    """Read the lines of a UTF-8 file, with or without a byte order mark; only \\n, \\r\\n and \\r end a line.

    str.splitlines would also split at U+2028, U+0085 and the like, which JSON strings and file names may hold.
    Raises InputError saying `missing` if there is no such file, and how to `fix` one that cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {fix}") from None
