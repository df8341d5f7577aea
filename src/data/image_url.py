"""Images as data: URLs: in which chat completions take them, and which a page holds in itself."""

import base64
import io

from PIL import Image

from src.data.image_check import FORMATS, check_by_decoding

LONG_SIDE = 1024  # pixels; what questions are about is to be seen at that size, and models scale larger images down
_BYTES = 4_000_000  # more than any picture of that size needs: the rest is no picture
_PLAIN = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}  # what every server reads, and reads alike
_QUALITY = 90  # of JPEG, 1 to 95
_TINY = 128  # pixels of the longer side, up to which a page shows a picture enlarged, and every artefact with it


def image_url(data: bytes) -> str:
    """The bytes of an image file as a data: URL: as they are, or as an RGB JPEG file of at most LONG_SIDE.

    As they are: JPEG and PNG files without alpha channel, palette or CMYK, of at most LONG_SIDE. Raises ValueError that
    says why where the image cannot be used: it is broken, or has more than MAX_PIXELS.
    """
    with _opened(data) as image:
        kind = image.format
        if (kind, image.mode) not in _PLAIN or max(image.size) > LONG_SIDE or len(data) > _BYTES:
            kind, data = "JPEG", _as_jpeg(image, LONG_SIDE, quality=_QUALITY)
    return _url(kind, data)


def thumbnail_url(data: bytes, long_side: int) -> str:
    """The bytes of an image file as the data: URL of an RGB JPEG file of at most `long_side` pixels.

    Upright as the pixels lie: without the Exif rotation, which a page would follow, and the model does not see.
    Raises ValueError as `image_url`.
    """
    with _opened(data) as image:
        quality = 95 if max(image.size) <= _TINY else 75
        return _url("JPEG", _as_jpeg(image, long_side, quality=quality, subsampling=0))


def _opened(data: bytes) -> Image.Image:
    reason = check_by_decoding(io.BytesIO(data))
    if reason is not None:
        raise ValueError(reason)
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _as_jpeg(image: Image.Image, long_side: int, **settings: int) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((long_side, long_side))
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return out.getvalue()


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
