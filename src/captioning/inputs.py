"""Find the photographs that a command names: files, folders, patterns and lists, one after the other.

Only the sorted names of the current folder are kept, so that a collection may be larger than memory.
"""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from src.captioning.output import printable
from src.data.image_formats import SUFFIXES, is_read, needs
from src.runtime.errors import InputError

_KINDS = 8  # of skipped files in a summary


class Found(NamedTuple):
    """A photograph, or a path that is none and the reason."""

    path: str
    reason: str | None = None


def find_photographs(items: Sequence[str], skipped: Counter[str] | None = None) -> Iterator[Found]:
    """Find the photographs that `items` name, in a fixed order.

    An item is a file of any name; a folder, searched with its folders, in the order of names, for files with known
    suffixes; a pattern with *, ? or [...], ** for folders below; or @FILE, which lists one file per line. Hidden names
    (.x) and links to folders are skipped. Errors: InputError if a list cannot be read.

    skipped: counts the other files of folders, by suffix in lower case.
    """
    skipped = Counter() if skipped is None else skipped
    for item in items:
        if item.startswith("@"):
            yield from map(Found, _lines(item[1:]))
            continue
        is_pattern = glob.has_magic(item) and not os.path.lexists(item)
        paths = _matches(item) if is_pattern else [item]
        for path in paths:
            yield from _walk(path, skipped) if os.path.isdir(path) else [Found(path)]
        if not paths:
            yield Found(item, "matches no file")


def skipped_note(skipped: Counter[str]) -> str:
    """Summarize the files skipped in folders, by format, and how to make them readable."""
    if not skipped:
        return ""
    kinds = sorted(skipped, key=lambda suffix: (-skipped[suffix], suffix))
    parts = [f"{skipped[kind]:,} {printable(kind) or 'without suffix'}" for kind in kinds[:_KINDS]]
    parts += [f"{len(kinds) - _KINDS} more kinds"] if len(kinds) > _KINDS else []
    reasons = "; ".join(reason for kind in kinds if (reason := needs(kind)))
    return f", skipped {skipped.total():,} ({', '.join(parts)}){': ' * bool(reasons)}{reasons}"


def _matches(pattern: str) -> list[str]:
    """Match a pattern, sorted; pathlib's ** follows no links, while that of `glob` follows them in circles."""
    root = Path(Path(pattern).anchor)
    try:
        found = sorted(root.glob(str(Path(pattern).relative_to(root))))
    except ValueError as error:
        raise InputError(f"--images {pattern}: {error}; fix the pattern") from None

    def hidden(path: Path) -> int:
        return sum(part.startswith(".") and part != ".." for part in path.parts)

    kept: dict[Path, None] = {}
    for path in found:  # a folder comes before its contents, which are found with it
        if hidden(path) <= hidden(Path(pattern)) and kept.keys().isdisjoint(path.parents):
            kept[path] = None
    return [str(path) for path in kept]


def _lines(path: str) -> Iterator[str]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"@{path}: is not a regular file; write the list to one, because it is read twice")
        # utf-8-sig: some editors begin a file with a byte order mark; surrogateescape: file names are bytes.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line in file:
                if line := line.rstrip("\r\n"):
                    yield line
    except OSError as error:
        raise InputError(f"@{path}: the list cannot be read ({error.strerror}); fix its path or permissions") from None


def _walk(folder: str, skipped: Counter[str]) -> Iterator[Found]:
    errors: list[OSError] = []
    empty = True
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()
            if is_read(suffix):
                empty = False
                yield Found(os.path.join(parent, name))
            else:
                skipped[suffix] += 1
    for error in errors:
        yield Found(error.filename, f"cannot be read ({error.strerror})")
    if empty and not errors:
        yield Found(folder, f"a folder without images ({', '.join(SUFFIXES)})")
