"""Work that threads do ahead, in order."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_order(
    work: Callable[..., Result], items: Iterable[tuple], threads: int, stop: Callable[[], object] = bool
) -> Generator[Result, None, None]:
    """Yield work(*item) for each of `items`, in their order; `threads` work ahead, a few items at a time.

    stop: called at the end, also at that of an error, before waiting for the threads.
    """
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as ending:
        ending.callback(stop)
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(work, *item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
