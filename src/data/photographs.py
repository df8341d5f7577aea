"""Users' photographs: files of any kind, checked, decoded and made upright RGB. H, W: height and width in pixels."""

import hashlib
import os
import stat
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from src.data.image_check import UnusableImage, load_image

MAX_BYTES = 200_000_000  # an uncompressed picture of image_check.MAX_PIXELS has 192 million

# What an Exif orientation asks for; 1 and unknown ones ask for nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # Exif's tag
_WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa")


class Photograph(NamedTuple):
    """pixels: uint8 [H, W, 3]. key: 64 bits of the file's SHA-256, the same wherever the file lies."""

    pixels: np.ndarray
    key: int


def read_photograph(path: str) -> Photograph:
    """A photograph from its file. Raises UnusableImage that says why the file cannot be used."""
    data = read_image_file(path)
    key = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    return Photograph(np.asarray(upright_rgb(load_image(BytesIO(data)))), key)


def read_image_file(path: str) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES: a pipe would wait forever. Raises UnusableImage."""
    if "\0" in path:
        raise UnusableImage("not a path: it holds a null byte")
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnusableImage("not a regular file")
            data = b"" if found.st_size > MAX_BYTES else file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnusableImage("missing") from None
    except IsADirectoryError:
        raise UnusableImage("a folder, not an image") from None
    except OSError as error:
        raise UnusableImage(f"cannot be read ({error.strerror})") from None
    if found.st_size > MAX_BYTES or len(data) > MAX_BYTES:
        raise UnusableImage(f"more than {MAX_BYTES:,} bytes")
    if not data:
        raise UnusableImage("empty")
    return data


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB: turned as its Exif data says, transparency on white, of 16 bits the upper eight.

    Raises UnusableImage on pixels of 32-bit floats, whose range is unknown.
    """
    orientation = _orientation(image)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    if image.mode == "F":
        raise UnusableImage("32-bit floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # I;16, or I from older versions of Pillow
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises many types on broken Exif data, which most viewers ignore
        return None
