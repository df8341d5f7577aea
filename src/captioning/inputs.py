"""Which photographs a command names: files, folders, patterns and lists, found one after the other.

Nothing is kept but the sorted names of the folder at hand, so that a collection may be larger than memory.
"""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from src.captioning.table import one_line
from src.data.image_formats import SUFFIXES, is_read, needs
from src.runtime.errors import InputError

_KINDS = 8  # of skipped files that a summary names


class Found(NamedTuple):
    """A photograph, or what stands for none and why."""

    path: str
    reason: str | None = None


def find_photographs(items: Sequence[str], skipped: Counter[str] | None = None) -> Iterator[Found]:
    """The photographs that `items` name, in a fixed order.

    An item is a file of any name; a folder, gone through with its folders, in the order of names, for files of
    suffixes that are read here; a pattern with *, ? or [...], ** for folders below; or @FILE, which lists one file a
    line. Hidden names (.x) and links to folders are passed by. Raises InputError where a list cannot be read.

    skipped: counts the other files of folders, by suffix in lower case.
    """
    skipped = Counter() if skipped is None else skipped
    for item in items:
        if item.startswith("@"):
            yield from map(Found, _lines(item[1:]))
        elif glob.has_magic(item) and not os.path.lexists(item):
            matches = _matches(item)
            for path in matches:
                yield from _walk(path, skipped) if os.path.isdir(path) else [Found(path)]
            if not matches:
                yield Found(item, "matches no file")
        else:
            yield from _walk(item, skipped) if os.path.isdir(item) else [Found(item)]


def skipped_note(skipped: Counter[str]) -> str:
    """What was skipped in folders, by format, and what makes it readable: the end of a summary."""
    if not skipped:
        return ""
    kinds = sorted(skipped, key=lambda suffix: (-skipped[suffix], suffix))
    parts = [f"{skipped[kind]:,} {one_line(kind) or 'without suffix'}" for kind in kinds[:_KINDS]]
    parts += [f"{len(kinds) - _KINDS} more kinds"] if len(kinds) > _KINDS else []
    reasons = "; ".join(reason for kind in kinds if (reason := needs(kind)))
    return f", skipped {skipped.total():,} ({', '.join(parts)}){': ' * bool(reasons)}{reasons}"


def _matches(pattern: str) -> list[str]:
    """Sorted, by pathlib, whose ** follows no links, as that of `glob` does, in circles too."""
    root = Path(Path(pattern).anchor)
    try:
        found = sorted(root.glob(str(Path(pattern).relative_to(root))))
    except ValueError as error:
        raise InputError(f"--images {pattern}: {error}") from None
    kept: list[Path] = []
    folders: set[Path] = set()
    for path in found:  # a folder before what is in it, which is gone through with it
        if _hidden(path) <= _hidden(Path(pattern)) and folders.isdisjoint(path.parents):
            kept.append(path)
            if path.is_dir():
                folders.add(path)
    return [str(path) for path in kept]


def _hidden(path: Path) -> int:
    return sum(part.startswith(".") and part != ".." for part in path.parts)


def _lines(path: str) -> Iterator[str]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"@{path}: is not a regular file; it is read twice, so write the list to one")
        # utf-8-sig: some editors begin a file with a mark; surrogateescape: file names are bytes.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line in file:
                if line := line.rstrip("\r\n"):
                    yield line
    except OSError as error:
        raise InputError(f"@{path}: the list cannot be read ({error.strerror})") from None


def _walk(folder: str, skipped: Counter[str]) -> Iterator[Found]:
    errors: list[OSError] = []
    empty = True
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if is_read(suffix):
                empty = False
                yield Found(os.path.join(parent, name))
            else:
                skipped[suffix] += 1
    for error in errors:
        yield Found(error.filename, f"cannot be read ({error.strerror})")
    if empty and not errors:
        yield Found(folder, f"a folder without images ({', '.join(SUFFIXES)})")
