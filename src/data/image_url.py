"""Images as data: URLs, for chat completions and for pages that must work offline."""

import base64
import io

from PIL import Image

from src.data.photographs import decode, is_plain

LONG_SIDE = 1024  # pixels; questions need no more detail, and models scale larger images down
_BYTES = 4_000_000  # no image of that size needs more; the rest of the file is not pixels
_QUALITY = 90  # of JPEG, 1 to 95
_TINY = 128  # pixels of the longer side, up to which a page enlarges an image and its JPEG artefacts


def image_url(data: bytes) -> str:
    """Convert the bytes of an image file to a data: URL: unchanged, or as an RGB JPEG file of at most LONG_SIDE.

    Unchanged: JPEG and PNG files of at most LONG_SIDE that every reader shows alike (`is_plain`).
    Raises UnusableImage with the reason.
    """
    image = decode(data)
    if max(image.size) <= LONG_SIDE and len(data) <= _BYTES and is_plain(data):
        return data_url("jpeg" if data.startswith(b"\xff") else "png", data)
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    return jpeg_url(image, quality=_QUALITY)


def thumbnail_url(data: bytes, long_side: int) -> str:
    """Convert the bytes of an image file to the data: URL of an RGB JPEG file of at most `long_side` pixels.

    The image looks as the model sees it: upright, and composited on white. Raises UnusableImage.
    """
    image = decode(data)
    quality = 95 if max(image.size) <= _TINY else 75
    image.thumbnail((long_side, long_side))
    return jpeg_url(image, quality=quality, subsampling=0)


def jpeg_url(image: Image.Image, **settings: int) -> str:
    """Encode an RGB image as the data: URL of a JPEG file. settings: Pillow's, such as quality."""
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return data_url("jpeg", out.getvalue())


def data_url(kind: str, data: bytes) -> str:
    """Encode the bytes of a JPEG or PNG file as a data: URL. kind: jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
