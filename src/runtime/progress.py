"""How far long work has come, on stderr: a bar on a terminal, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from src.runtime.environment import is_first_worker

_BAR_SECONDS = 1  # before a bar is shown: what is done sooner needs none
_LINE_SECONDS = 30  # between lines of one piece of work, and before its first
_LINE_SHARE = 0.01  # of the work between lines: days of training shall not fill a log
Item = TypeVar("Item")


class Progress:
    """Counts `unit`s of work up to `total`, with their rate and the time left, both at the mean rate since the start.

    One worker of a command shows it, the first. A bar below another one vanishes at its end.
    """

    def __init__(self, description: str, total: int, unit: str, *, start: int = 0, shown: bool = True) -> None:
        """
        Args:
            start: what was done before, and is not of this rate.
            shown: False where another process shows the same work.
        """
        shown = shown and is_first_worker()
        terminal = sys.stderr.isatty()
        self._description, self._total, self._unit = description, total, unit
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=description,
            unit=unit,
            leave=None,
            miniters=1,
            smoothing=0,
            delay=_BAR_SECONDS,
            disable=not (shown and terminal),
        )
        self._writes_lines = shown and not terminal
        self._start = self._done = self._written = start
        self._started = self._written_at = time.monotonic()

    def update(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` stands behind the rate."""
        self._done += count
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        waited = time.monotonic() - self._written_at
        if self._writes_lines and waited >= _LINE_SECONDS and self._done - self._written >= _LINE_SHARE * self._total:
            self._write_line(note)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of them one unit, which is done when the next is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """The work has ended, or is given up."""
        self._bar.close()
        if self._written > self._start and self._done > self._written:
            self._write_line("")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_line(self, note: str) -> None:
        self._written, self._written_at = self._done, time.monotonic()
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._written_at - self._started,
            ncols=0,  # no bar
            prefix=self._description,
            unit=self._unit,
            initial=self._start,
            postfix=note or None,
        )
        print(line, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line on stdout, above the bars."""
    tqdm.write(text)
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print a warning on stderr, above the bars."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()
