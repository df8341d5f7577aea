"""Print captions to stdout: a Markdown table with a column for each checkpoint, batch by batch."""

from collections.abc import Mapping, Sequence
from unicodedata import category

from src.captioning.captions import Captions


class CaptionTable:
    """Print captions if there is no --output; used like CaptionFile."""

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = ["photograph", "decoding", *names]
        self._begun = False

    def write(
        self, captioned: Mapping[str, Captions], failed: Mapping[str, str], files: Mapping[str, tuple[int, int]]
    ) -> None:
        """Print the rows of a batch, its columns aligned."""
        rows = [row for path, captions in captioned.items() for row in table_rows(path, captions)]
        widths = [max(map(len, column)) for column in zip(self._columns, *rows)]
        if rows and not self._begun:
            self._begun = True
            rows = [self._columns, ["-" * width for width in widths], *rows]
        for row in rows:
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |", flush=True)

    def summary(self, captioned: int, failed: int, seconds: float, before: int) -> str:
        """Return the last line, for stderr."""
        return f"captioned {captioned:,}, {failed:,} failed"


def table_rows(path: str, captions: Captions) -> list[list[str]]:
    """Build a row for each decoding: the path (once), the decoding, and each checkpoint's caption with its log-prob."""
    rows = [
        ["", row[0].decoding, *[f"{caption.caption} ({caption.logprob:.1f})" for caption in row]]
        for row in zip(*captions.values())
    ]
    rows[0][0] = printable(path)
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]


def printable(path: str) -> str:
    """Escape terminal controls, line breaks and lone surrogates in a path."""
    escaped = ("Cc", "Cs", "Zl", "Zp")  # but not U+202F and U+200D, which macOS and emoji put into names
    return "".join(c.encode("unicode_escape").decode() if category(c) in escaped else c for c in path)
