"""Progress of long work on stderr: a bar on a terminal, elsewhere a plain line now and then."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from src.runtime.environment import is_first_worker

_BAR_SECONDS = 1  # before a bar appears: shorter work needs none
_LINE_SECONDS = 30  # between lines of one piece of work, and before its first
_LINE_SHARE = 0.01  # of the work between lines: long runs do not flood the log
Item = TypeVar("Item")


class _Lines:
    """A file that keeps only the lines of progress of what tqdm writes, not the movements of its cursor."""

    def write(self, text: str) -> None:
        if text.startswith("\r") and text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress(tqdm):
    """Counts `unit`s of work up to `total`, with the mean rate since the start and the time left.

    Only the first worker of a command shows it. A bar below another one vanishes at its end.
    """

    monitor_interval = 0  # no thread that prints more often than asked

    def __init__(self, description: str, total: int, unit: str, *, start: int = 0, shown: bool = True) -> None:
        """
        Args:
            start: units that were done before and do not count for the rate.
            shown: False if another process shows the same work.
        """
        shape: dict[str, Any] = {"miniters": 1, "delay": _BAR_SECONDS}
        self._has_lines = not sys.stderr.isatty()
        if self._has_lines:
            shape = {"file": _Lines(), "ncols": 0, "delay": _LINE_SECONDS, "mininterval": _LINE_SECONDS}
            shape |= {"miniters": _LINE_SHARE * total}
        shape |= {"leave": None, "smoothing": 0, "disable": not (shown and is_first_worker())}
        super().__init__(total=total, initial=start, desc=description, unit=unit, **shape)

    def update(self, count: int = 1, note: str = "") -> None:
        """Add `count` units; the bar shows `note` after the rate."""
        self.set_postfix_str(note, refresh=False)
        super().update(count)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, each of them one unit, done when the next one is requested."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """End the work, complete or not; a log that has lines of it gets a last one."""
        if self._has_lines and not self.disable:
            self.leave = self.n > self.last_print_n
            self.set_postfix_str("", refresh=False)
        super().close()


def say(text: str) -> None:
    """Print a line on stdout, above the bars."""
    Progress.write(text)
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print a warning on stderr, above the bars."""
    Progress.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()
