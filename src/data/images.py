"""Batches of preprocessed images: threads decode, MindData resizes and normalises in C++ threads, in the given order.

B images per batch, H = W = image_size.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from PIL import Image

from src.config.kinds import Preprocessing
from src.data.image_files import ImageFiles
from src.data.photographs import UnusableImage, decode
from src.runtime.errors import InputError
from src.runtime.threads import in_order

_PREFETCH = 4  # elements per MindData queue; its default of 16 batches is 300 MB at 32 x 224 x 224


class ImageSource:
    """The images of `images` by index, preprocessed. Raises InputError naming statistics that are out of range.

    image_size: side in pixels; pictures are squashed to a square, or filled up to one if `padded`, but not cropped.
    workers: threads that read and decode, and as many that resize.
    resize_after_normalize: the order of the original (with scale 1 and 0-1 statistics: its defect).
    """

    def __init__(
        self,
        images: ImageFiles,
        image_size: int,
        scaling: Preprocessing,
        workers: int,
        resize_after_normalize: bool = False,
        *,
        padded: bool = False,
    ) -> None:
        self._images = images
        self._workers = workers
        self._padded = padded
        normalize = vision.Normalize(*(_in_pixels(name, scaling) for name in ("mean", "std")))
        resize = _resize(image_size, scaling.resampling)
        steps = [normalize, resize] if resize_after_normalize else [resize, normalize]
        self._operations = [*steps, vision.HWC2CHW()]

    def batches(self, index_batches: Sequence[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Yield the images float32 [B,3,H,W] of each array of indices [B], rows in that order.

        All arrays have one length (the caller pads the last). Raises InputError naming a file that cannot be decoded.
        """
        if not len(index_batches):
            return
        size = len(index_batches[0])
        if any(len(batch) != size for batch in index_batches):
            raise ValueError("all index batches must have one length")
        order = [int(i) for batch in index_batches for i in batch]
        failures: list[InputError] = []  # MindData's own error says too little

        def pixels() -> Iterator[tuple[np.ndarray]]:
            try:
                for image in in_order(self._decoded, self._images.stream(order), self._workers):
                    yield (image,)
            except InputError as error:
                failures.append(error)
                raise

        ds.config.set_prefetch_size(_PREFETCH)
        data = ds.GeneratorDataset(pixels, ["image"], shuffle=False, python_multiprocessing=False)
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
        """Preprocess one decoded image, uint8 [h,w,3], as `batches` does: float32 [3,H,W]."""
        if self._padded:
            pixels = square(pixels)
        for operation in self._operations:
            pixels = operation(pixels)
        return pixels

    def _decoded(self, file: Path, load: Callable[[], bytes]) -> np.ndarray:
        """Decode one image, uint8 [h,w,3]. Raises InputError naming the file."""
        pixels = _pixels(file, load)
        return square(pixels) if self._padded else pixels


def _resize(side: int, resampling: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return an operation of MindData, uint8 [h,w,3] -> [side,side,3]."""
    if resampling == "bilinear, antialiased":  # MindData has Pillow's bicubic, but not its bilinear
        return lambda pixels: np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
    method = vision.Inter.PILCUBIC if resampling == "bicubic, antialiased" else vision.Inter.LINEAR
    return vision.Resize((side, side), method)


def square(pixels: np.ndarray) -> np.ndarray:
    """Fill an image, uint8 [h,w,3], up to a square with grey bars of equal width on both sides."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    filled = np.full((side, side, 3), 128, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    filled[top : top + height, left : left + width] = pixels
    return filled


def _pixels(file: Path, load: Callable[[], bytes]) -> np.ndarray:
    """Decode one image, uint8 [h,w,3]. Raises InputError naming the file."""
    try:
        return np.asarray(decode(load()))
    except UnusableImage as reason:
        raise InputError(f"{file}: {reason}; restore the file or remove it from the data set") from None


def _in_pixels(name: str, scaling: Preprocessing) -> list[float]:
    """Convert statistics to the 0..255 scale of MindData: (p*scale - mean)/std = (p - mean/scale)/(std/scale)."""
    values, scale = getattr(scaling, name), scaling.scale
    pixels = [value / scale for value in values] if scale > 0 else []
    if len(pixels) != 3 or not all(0 <= pixel <= 255 for pixel in pixels) or (name == "std" and not all(pixels)):
        raise InputError(
            f"{name}={list(values)} with scale={scale}: use three values between 0 and {255 * scale:g}; "
            "scale=1 goes with statistics of pixels 0..255, scale=1/255 with statistics of 0..1"
        )
    return pixels
