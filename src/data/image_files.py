"""Image files by index, and work on them that is done ahead by threads, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from src.data.image_check import check_image
from src.errors import InputError
from src.progress import Progress

Result = TypeVar("Result")


class ImageFiles:
    """`files` by index."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def sizes(self) -> list[int]:
        """Bytes of each file. Errors: InputError naming the first that cannot be read."""
        try:
            files = Progress("sizes of image files", len(self.files), "image").over(self.files)
            return [file.stat().st_size for file in files]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); restore the image") from None

    def stream(self, order: Sequence[int]) -> Iterator[tuple[Path, Callable[[], bytes]]]:
        """For each index of `order` the file and what reads its bytes."""
        for index in order:
            yield self.files[index], self.files[index].read_bytes

    def reason(self, file: Path) -> str | None:
        """Why a file cannot be used, or None."""
        return check_image(file)


def in_order(work: Callable[..., Result], items: Iterable[tuple], threads: int) -> Iterator[Result]:
    """work(*item) for each of `items`, in their order; `threads` work ahead, a few items at a time."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(work, *item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
