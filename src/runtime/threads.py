"""Work that threads do ahead, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_order(work: Callable[..., Result], items: Iterable[tuple], threads: int) -> Generator[Result, None, None]:
    """Yield work(*item) for each of `items`, in their order; `threads` work ahead, a few items at a time."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(work, *item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
