"""Images as data: URLs, for requests to chat completions and for pages that embed their pictures."""

import base64
import io

from PIL import Image

from src.data.photographs import decode, is_plain

LONG_SIDE = 1024  # pixels; shows what questions are about, and models scale larger images down
_BYTES = 4_000_000  # more than any picture of that size needs: the rest belongs to no picture
_TINY = 128  # pixels of the longer side, up to which a page shows a picture enlarged, and every artefact with it


def image_url(data: bytes) -> str:
    """Return the bytes of an image file as a data: URL. Raises UnusableImage.

    They are scaled down to LONG_SIDE and converted to JPEG, unless every reader shows them alike (`is_plain`).
    """
    image = decode(data)
    if max(image.size) > LONG_SIDE or len(data) > _BYTES or not is_plain(data):
        return _jpeg_url(image, LONG_SIDE, quality=90)
    return _url("jpeg" if data.startswith(b"\xff") else "png", data)


def thumbnail_url(data: bytes, long_side: int) -> str:
    """Return an image as the model sees it, upright and on white, as a JPEG data: URL; long_side: in pixels."""
    image = decode(data)
    return _jpeg_url(image, long_side, quality=95 if max(image.size) <= _TINY else 75, subsampling=0)


def _jpeg_url(image: Image.Image, long_side: int, **settings: int) -> str:
    image.thumbnail((long_side, long_side))
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return _url("jpeg", out.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
