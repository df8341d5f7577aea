"""Files of captions: JSON lines that several workers append to, and that a killed run resumes from.

FILE.jsonl has one line for each photograph, FILE.bad.jsonl one for each file that could not be used by the last run,
FILE.settings.json what the captions were made with. Whole lines are appended under a lock of the file, and a torn
last line that a kill left is removed first.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.captioning.captions import Captions
from src.config.rules import flatten
from src.data.digests import state_key
from src.runtime.errors import InputError
from src.runtime.files import append_json_lines, json_lines, lock


class CaptionFile:
    """The captions of a collection, in `path`, and what could not be captioned, beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = path.with_name(f"{path.stem}.bad.jsonl")
        self.settings = path.with_name(f"{path.stem}.settings.json")

    def open(self, made_from: Mapping[str, Any]) -> None:
        """Make the files, or check that what is there was made from the same; one worker does, before all append.

        Raises InputError naming what differs, or a file that cannot be written, or where another run writes it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.settings, "a", encoding="utf-8")  # noqa: SIM115 (held until the process ends)
            if not lock(self._lock):
                raise InputError(f"{self.path}: another run is writing to it; wait for it, or pass another --output")
            if self.path.exists():
                old, new = flatten(dict(self._made_from())), flatten(dict(made_from))
                differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
                if differing:
                    raise InputError(
                        f"{self.path} holds captions made with other {', '.join(differing)}; give another --output, or "
                        "delete the file"
                    )
            else:
                self._lock.truncate(0)
                self._lock.write(json.dumps(made_from, indent=1) + "\n")
                self._lock.flush()
            self.bad.write_bytes(b"")  # all that has no caption is tried again
            append_json_lines(self.path, [])
        except OSError as error:
            raise InputError(f"cannot write {error.filename}: {error.strerror}; give another --output") from None

    def _made_from(self) -> Mapping[str, Any]:
        try:
            return json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{self.path} is there, but {self.settings}, which says what it was made with, is not: give another "
                "--output"
            ) from None

    def done(self) -> "DonePaths":
        """The photographs that have a caption."""
        return DonePaths(self._lines())

    def write(
        self, captioned: Mapping[str, Captions], failed: Mapping[str, str], files: Mapping[str, tuple[int, int]]
    ) -> None:
        """Append a batch, and what failed in it. Raises OSError on a full disk; whole lines stay.

        files: key and state of each photograph that was captioned.
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
        """The last line: how many, how fast, and where what failed is listed."""
        text = f"{self.path}: captioned {captioned:,} in {seconds:.0f} s ({captioned / seconds:.1f}/s)"
        text += f", {before:,} were there" if before else ""
        return text + (f", {failed:,} failed: {self.bad}" if failed else "")

    def _lines(self) -> Iterator[tuple[str, int, int]]:
        def read(row: Any) -> tuple[str, int, int]:
            key, state = (int(number, 16) for number in row["file"])
            return row["image"], key, state

        return json_lines(self.path, read)


class DonePaths:
    """Captioned paths with key and state of their files, 24 bytes of each: among a million the chance that two have one
    digest is 3e-8. Of a path in several lines the last counts."""

    def __init__(self, lines: Iterable[tuple[str, int, int]]) -> None:
        rows = ((path_digest(path), key, state) for path, key, state in lines)
        every = np.fromiter(rows, np.dtype([(name, np.uint64) for name in ("path", "key", "state")]))
        self._rows = every[np.argsort(every["path"], kind="stable")]

    def is_settled(self, path: str) -> bool:
        """Whether a path has a caption, and its file the state that it had then; or is there no more."""
        row = self._row(path)
        if row is None:
            return False
        with contextlib.suppress(OSError):
            return row["state"] != 0 and int(row["state"]) == state_key(os.stat(path))
        return True

    def key(self, path: str) -> int | None:
        """The key of the photograph that a path was captioned with, or None."""
        row = self._row(path)
        return None if row is None else int(row["key"])

    def __len__(self) -> int:
        return len(np.unique(self._rows["path"]))

    def _row(self, path: str) -> np.void | None:
        digest = np.uint64(path_digest(path))
        place = int(np.searchsorted(self._rows["path"], digest, "right")) - 1
        return self._rows[place] if place >= 0 and self._rows["path"][place] == digest else None


def path_digest(path: str) -> int:
    """64 bits that stand for a path."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")
