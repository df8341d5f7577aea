"""Print captions as a Markdown table, or append them to JSON lines that workers share and killed runs resume from.

FILE.jsonl has one line for each photograph, FILE.bad.jsonl one for each file that the last run could not use, and
FILE.settings.json the settings behind the captions. Lines are appended whole, under a lock; a torn last line is
removed first.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np

from src.captioning.captions import Captions
from src.config.rules import flatten
from src.data.digests import state_key
from src.runtime.errors import InputError
from src.runtime.files import append_json_lines, json_lines, lock


class CaptionTable:
    """Print captions if there is no --output; used like CaptionFile."""

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = ["photograph", "decoding", *names]
        self._begun = False

    def write(
        self, captioned: Mapping[str, Captions], failed: Mapping[str, str], files: Mapping[str, tuple[int, int]]
    ) -> None:
        """Print the rows of a batch, its columns aligned."""
        rows = []
        for path, captions in captioned.items():
            for number, options in enumerate(zip(*captions.values())):
                cells = ["" if number else printable(path), options[0].decoding]
                cells += [f"{caption.caption} ({caption.logprob:.1f})" for caption in options]
                rows.append([cell.replace("|", "\\|") for cell in cells])
        widths = [max(map(len, column)) for column in zip(self._columns, *rows)]
        if rows and not self._begun:
            self._begun = True
            rows = [self._columns, ["-" * width for width in widths], *rows]
        for row in rows:
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |", flush=True)

    def summary(self, captioned: int, failed: int, seconds: float, before: int) -> str:
        """Return the last line, for stderr."""
        return f"captioned {captioned:,}, {failed:,} failed"


def printable(path: str) -> str:
    """Escape terminal controls, line breaks and lone surrogates in a path."""
    escaped = ("Cc", "Cs", "Zl", "Zp")  # but not U+202F and U+200D, which macOS and emoji put into names
    return "".join(c.encode("unicode_escape").decode() if category(c) in escaped else c for c in path)


class CaptionFile:
    """The captions of a collection, in `path`, and the failures, beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = path.with_name(f"{path.stem}.bad.jsonl")
        self.settings = path.with_name(f"{path.stem}.settings.json")

    def open(self, made_from: Mapping[str, Any]) -> None:
        """Create the files, or check the settings of existing ones; one worker does this before any appends.

        Errors: InputError naming the settings that differ, a file that cannot be written, or one that another run uses.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.settings, "a", encoding="utf-8")  # noqa: SIM115 (held until the process ends)
            if not lock(self._lock):
                raise InputError(f"{self.path}: another run is writing to it; wait for it or pass another --output")
            if self.path.exists():
                old, new = self._old_settings(), flatten(dict(made_from))
                differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
                if differing:
                    raise InputError(
                        f"{self.path} holds captions made with other {', '.join(differing)}; pass another --output or "
                        "delete the file"
                    )
            else:
                self._lock.truncate(0)
                self._lock.write(json.dumps(made_from, indent=1) + "\n")
                self._lock.flush()
            self.bad.write_bytes(b"")  # files without a caption are tried again
            append_json_lines(self.path, [])
        except OSError as error:
            raise InputError(f"cannot write {error.filename}: {error.strerror}; pass another --output") from None

    def _old_settings(self) -> dict[str, Any]:
        try:
            return flatten(json.loads(self.settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError):  # not even an object
            raise InputError(
                f"{self.settings} is missing or damaged: the settings of {self.path} are unknown; use another --output"
            ) from None

    def done(self) -> "DonePaths":
        """Read which photographs have a caption."""

        def read(row: Any) -> tuple[str, int, int]:
            key, state = (int(number, 16) for number in row["file"])
            return row["image"], key, state

        return DonePaths(json_lines(self.path, read))

    def write(
        self, captioned: Mapping[str, Captions], failed: Mapping[str, str], files: Mapping[str, tuple[int, int]]
    ) -> None:
        """Append a batch and its failures. Raises OSError on a full disk; whole lines stay.

        files: key and state of each captioned photograph.
        """
        lines = [
            {
                "image": path,
                "captions": {name: [row._asdict() for row in rows] for name, rows in captions.items()},
                "file": [f"{number:016x}" for number in files[path]],
            }
            for path, captions in captioned.items()
        ]
        append_json_lines(self.path, lines)
        append_json_lines(self.bad, [{"image": path, "reason": reason} for path, reason in failed.items()])

    def summary(self, captioned: int, failed: int, seconds: float, before: int) -> str:
        """Return the last line: how many, how fast, and where failures are listed."""
        text = f"{self.path}: captioned {captioned:,} in {seconds:.0f} s ({captioned / seconds:.1f}/s)"
        text += f", {before:,} already captioned" if before else ""
        return text + (f", {failed:,} failed: {self.bad}" if failed else "")


class DonePaths:
    """Captioned paths with key and state of their files, in 24 bytes each. Of several lines of a path, the last counts.

    The chance that two of a million paths share a digest is 3e-8.
    """

    def __init__(self, lines: Iterable[tuple[str, int, int]]) -> None:
        rows = ((path_digest(path), key, state) for path, key, state in lines)
        every = np.fromiter(rows, np.dtype([(name, np.uint64) for name in ("path", "key", "state")]))
        self._rows = every[np.argsort(every["path"], kind="stable")]

    def is_settled(self, path: str) -> bool:
        """Return whether a path has a caption, and its file is unchanged or gone."""
        if (row := self._row(path)) is None:
            return False
        with contextlib.suppress(OSError):
            return row["state"] != 0 and int(row["state"]) == state_key(os.stat(path))
        return True

    def key(self, path: str) -> int | None:
        """Return the key of the photograph that a path was captioned with, or None."""
        return None if (row := self._row(path)) is None else int(row["key"])

    def __len__(self) -> int:
        return len(np.unique(self._rows["path"]))

    def _row(self, path: str) -> np.void | None:
        digest = np.uint64(path_digest(path))
        place = int(np.searchsorted(self._rows["path"], digest, "right")) - 1
        return self._rows[place] if place >= 0 and self._rows["path"][place] == digest else None


def path_digest(path: str) -> int:
    """Digest a path to 64 bits."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")
