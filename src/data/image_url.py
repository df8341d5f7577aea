"""Images as data: URLs: in which chat completions take them, and which a page holds in itself."""

import base64
import io

from PIL import Image

from src.data.photographs import decode, is_plain

LONG_SIDE = 1024  # pixels; what questions are about is to be seen at that size, and models scale larger images down
_BYTES = 4_000_000  # more than any picture of that size needs: the rest is no picture
_QUALITY = 90  # of JPEG, 1 to 95
_TINY = 128  # pixels of the longer side, up to which a page shows a picture enlarged, and every artefact with it


def image_url(data: bytes) -> str:
    """The bytes of an image file as a data: URL: as they are, or as an RGB JPEG file of at most LONG_SIDE.

    As they are: JPEG and PNG files of at most LONG_SIDE that every reader shows alike (`is_plain`).
    Raises UnusableImage that says why the image cannot be used.
    """
    image = decode(data)
    if max(image.size) <= LONG_SIDE and len(data) <= _BYTES and is_plain(data):
        return _url("jpeg" if data.startswith(b"\xff") else "png", data)
    return _jpeg_url(image, LONG_SIDE, quality=_QUALITY)


def thumbnail_url(data: bytes, long_side: int) -> str:
    """The bytes of an image file as the data: URL of an RGB JPEG file of at most `long_side` pixels.

    As the model sees it: upright, and on white. Raises UnusableImage.
    """
    image = decode(data)
    return _jpeg_url(image, long_side, quality=95 if max(image.size) <= _TINY else 75, subsampling=0)


def _jpeg_url(image: Image.Image, long_side: int, **settings: int) -> str:
    image.thumbnail((long_side, long_side))
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return _url("jpeg", out.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
