"""Images as the data: URLs in which chat completions take them."""

import base64
import io

from PIL import Image

from src.data.image_check import FORMATS, check_by_decoding

LONG_SIDE = 1024  # pixels; what questions are about is to be seen at that size, and models scale larger images down
_BYTES = 4_000_000  # more than any picture of that size needs: the rest is no picture
_PLAIN = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}  # what every server reads, and reads alike
_QUALITY = 90  # of JPEG, 1 to 95


def image_url(data: bytes) -> str:
    """The bytes of an image file as a data: URL: as they are, or as an RGB JPEG file of at most LONG_SIDE.

    As they are: JPEG and PNG files without alpha channel, palette or CMYK, of at most LONG_SIDE. Raises ValueError that
    says why where the image cannot be used: it is broken, or has more than MAX_PIXELS.
    """
    reason = check_by_decoding(io.BytesIO(data))
    if reason is not None:
        raise ValueError(reason)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = image.format
        if (kind, image.mode) not in _PLAIN or max(image.size) > LONG_SIDE or len(data) > _BYTES:
            kind, data = "JPEG", _as_jpeg(image)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _as_jpeg(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
