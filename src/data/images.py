"""Batches of preprocessed images: threads decode, MindData resizes and normalises in C++ threads, in the given order.

B images per batch, H = W = image_size.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision

from src.data.image_files import Images
from src.data.photographs import UnusableImage, decode
from src.runtime.errors import InputError
from src.runtime.threads import in_order

_PREFETCH = 4  # elements per MindData queue; its default of 16 batches is 300 MB at 32 x 224 x 224


class ImageSource:
    """Images by index, as `decode` reads them."""

    def __init__(
        self,
        images: Images,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float,
        workers: int,
        resize_after_normalize: bool = False,
    ) -> None:
        """
        Args:
            images: what an index means.
            image_size: side in pixels; the picture is squashed to a square, not cropped.
            mean, std: 3 values each for R, G, B: a pixel p of 0..255 becomes (p * scale - mean) / std.
            scale: 1/255 for statistics of 0..1, 1 for statistics of 0..255.
            workers: threads that read and decode, and as many that resize.
            resize_after_normalize: the order of the original (with scale 1 and 0-1 statistics: its defect).
        Raises:
            InputError: names the key that is out of range.
        """
        self._images = images
        self._workers = workers
        normalize = vision.Normalize(_in_pixels("mean", mean, scale), _in_pixels("std", std, scale))
        resize = vision.Resize((image_size, image_size), vision.Inter.LINEAR)  # not antialiased
        steps = [normalize, resize] if resize_after_normalize else [resize, normalize]
        self._operations = [*steps, vision.HWC2CHW()]

    def batches(self, index_batches: Sequence[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """For each array of indices [B] the images float32 [B,3,H,W], rows in that order.

        All arrays have one length (the caller pads the last). Every call starts a pipeline of its own, which ends
        with the iterator, also with one that is left early.
        Raises: InputError naming the file that cannot be read or decoded.
        """
        if not len(index_batches):
            return
        size = len(index_batches[0])
        if any(len(batch) != size for batch in index_batches):
            raise ValueError("all index batches must have one length")
        order = [int(i) for batch in index_batches for i in batch]
        ds.config.set_prefetch_size(_PREFETCH)
        failures: list[InputError] = []
        reader = self._reader(order, failures)
        data = ds.GeneratorDataset(reader, ["image"], shuffle=False, python_multiprocessing=False)
        data = data.map(self._operations, ["image"], num_parallel_workers=self._workers)
        data = data.batch(size, drop_remainder=True, num_parallel_workers=1)
        rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
        try:
            for (images,) in rows:
                yield images
        except RuntimeError as error:
            raise failures[0] if failures else error from error
        finally:
            rows.stop()

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """What `batches` gives, float32 [3,H,W], of one image that is decoded already, uint8 [h,w,3]."""
        for operation in self._operations:
            pixels = operation(pixels)
        return pixels

    def _reader(self, order: Sequence[int], failures: list[InputError]) -> Callable[[], Iterator[tuple[np.ndarray]]]:
        """The pixels of the images in their order, decoded ahead by `workers` threads.

        failures: gets what was wrong, of which MindData's own error says too little.
        """

        def rows() -> Iterator[tuple[np.ndarray]]:
            try:
                for pixels in in_order(_pixels, self._images.stream(order), self._workers):
                    yield (pixels,)
            except InputError as error:
                failures.append(error)
                raise

        return rows


def _pixels(file: Path, load: Callable[[], bytes]) -> np.ndarray:
    """uint8 [h,w,3] of one image. Errors: InputError naming the file."""
    try:
        return np.asarray(decode(load()))
    except UnusableImage as reason:
        raise InputError(f"{file}: {reason}; restore the file or take it out of the data set") from None


def _in_pixels(name: str, values: Sequence[float], scale: float) -> list[float]:
    """Statistics on the 0..255 scale, as MindData wants: (p*scale - mean)/std = (p - mean/scale)/(std/scale)."""
    pixels = [value / scale for value in values] if scale > 0 else []
    if len(pixels) != 3 or not all(0 <= pixel <= 255 for pixel in pixels) or (name == "std" and not all(pixels)):
        raise InputError(
            f"{name}={list(values)} with scale={scale}: three values between 0 and {255 * scale:g} are needed; "
            "scale=1 goes with statistics of pixels 0..255, scale=1/255 with those of 0..1"
        )
    return pixels
