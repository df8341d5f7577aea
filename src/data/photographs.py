"""The one reader of image files: for training, evaluation, captioning, questions, reports and checks.

A file is decoded as a viewer shows it: upright, transparency on white, 8 bits, RGB. A file that cannot be read
correctly is refused with the reason. H, W: height and width in pixels.
"""

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose as T

from src.data.digests import state_key
from src.data.image_formats import RAW, UnusableImage, formats_of, unidentified
from src.runtime.progress import Progress
from src.runtime.threads import in_order

READER = 2  # part of the feature cache's key: raise it whenever the pixels of any file change
MAX_BYTES = 200_000_000  # an uncompressed picture of MAX_PIXELS has 192 million
MAX_PIXELS = 64_000_000  # a decompression bomb is a small file with a huge picture; 64 million pixels are 192 MB

# The turn for each Exif orientation. ImageOps.exif_transpose also rewrites the Exif data, which fails on broken tags.
_ORDER = (
    T.FLIP_LEFT_RIGHT,
    T.ROTATE_180,
    T.FLIP_TOP_BOTTOM,
    T.TRANSPOSE,
    T.ROTATE_270,
    T.TRANSVERSE,
    T.ROTATE_90,
)
_TURNS = dict(enumerate(_ORDER, start=2))
_LARGEST, _COLORMAP = 281, 320
_NEW_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 254, 258, 259, 262, 274, 339
_PLANES, _DNG = 284, 50706  # of TIFF files
_YCBCR, _UNCOMPRESSED = 6, 1  # a photometric interpretation, and a compression
_HEAD, _TAIL = 4096, 32  # bytes that the scan reads
_THREADS = 8
_PNG_DEPTH = 24  # the place of the bits per sample in a PNG file


class Photograph(NamedTuple):
    """pixels: uint8 [H, W, 3]. key: 64 bits of the file's SHA-256, the same in any folder. state: `state_key`."""

    pixels: np.ndarray
    key: int
    state: int = 0


def read_photograph(path: str) -> Photograph:
    """Read a photograph from its file. Raises UnusableImage."""
    with regular_file(path) as (_, found):
        state = state_key(found)  # before its bytes are read
    data = read_image_file(path)
    return Photograph(np.asarray(decode(data)), int.from_bytes(hashlib.sha256(data).digest()[:8], "big"), state)


def read_image_file(path: str | Path) -> bytes:
    """Read a regular file of at most MAX_BYTES. Raises UnusableImage."""
    with regular_file(path) as (file, _):
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnusableImage(f"more than {MAX_BYTES:,} bytes")
    return data


@contextlib.contextmanager
def regular_file(path: str | Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file that is not empty, and yield its state too. Raises UnusableImage; a pipe could block."""
    if "\0" in str(path):
        raise UnusableImage("not a path: it holds a null byte")
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnusableImage("not a regular file")
            if found.st_size == 0:
                raise UnusableImage("empty")
            yield file, found
    except OSError as error:
        reasons = {FileNotFoundError: "missing", IsADirectoryError: "a folder, not an image"}
        raise UnusableImage(reasons.get(type(error), f"cannot be read ({error.strerror})")) from None


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to RGB; of an animation the first frame. Raises UnusableImage."""
    try:
        with Image.open(BytesIO(data), formats=formats_of(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImage(_too_large(image.width, image.height))
            _refuse(image, data)
            image.load()
            return _upright_rgb(image, data)
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise UnusableImage(unidentified(data)) from None
    except Exception as error:  # Pillow's decoders raise many types on broken files
        bomb = isinstance(error, Image.DecompressionBombError)
        raise UnusableImage(f"more than {MAX_PIXELS:,} pixels" if bomb else "truncated or broken") from None


def is_plain(data: bytes) -> bool:
    """Return whether all readers see what `decode` sees: a JPEG or PNG file, upright, opaque, 8 bits, RGB or grey."""
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return False
    with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
        deep = image.format == "PNG" and data[_PNG_DEPTH] > 8
        return image.mode in ("RGB", "L") and "transparency" not in image.info and not deep and _turn(image) is None


def _too_large(width: int, height: int) -> str:
    """Return why a picture of that size is refused."""
    return f"{width} x {height} pixels, more than {MAX_PIXELS:,}"


def _refuse(image: Image.Image, data: bytes) -> None:
    """Raise UnusableImage for pixels that Pillow opens but reads wrong, or whose range is unknown."""
    tags = getattr(image, "tag_v2", {})  # of TIFF files alone
    if _DNG in tags or tags.get(_NEW_SUBFILE, 0) & 1:  # the first page of a raw photograph is a small preview
        raise UnusableImage(RAW)
    if image.mode == "F":
        raise UnusableImage("32-bit floating-point pixels; save it with 8 or 16 bits")
    if image.mode == "P" and max(tags.get(_COLORMAP, (65535,))) < 256:
        raise UnusableImage("a palette of 8 bits, where TIFF has 16; save it as RGB")
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise UnusableImage("signed pixels; save it with 8 or 16 bits, unsigned")
    if image.mode == "I" and image.format != "PNG":
        raise UnusableImage("32-bit pixels; save it with 8 or 16 bits")
    if tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION) == _UNCOMPRESSED:
        raise UnusableImage("uncompressed YCbCr pixels; save it as RGB")
    if tags.get(_PLANES) == 2 and 16 in tags.get(_BITS, ()):
        raise UnusableImage("16 bits in separate planes; save it with 8, or interleaved")
    if image.format == "PNG" and data[_PNG_DEPTH] == 16 and image.mode == "RGB" and "transparency" in image.info:
        raise UnusableImage("a transparent colour of 16 bits; save it with an alpha channel")


def _upright_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Turn a decoded image as its Exif data says, put it on white, and keep the upper 8 of 16 bits."""
    turn = _turn(image)
    if image.mode.startswith("I"):
        image = _grey(image)
    elif image.mode == "L" and image.format == "PNG" and "transparency" in image.info:  # Pillow scales pixels alone
        image.info["transparency"] *= 255 // (2 ** data[_PNG_DEPTH] - 1)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if turn is not None:
        image = image.transpose(turn)
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Pillow raises many types on broken Exif data, which most viewers ignore
        return None


def _grey(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16 or, in TIFF files, of 12."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)  # of older versions of Pillow int32
    bits = tags.get(_BITS, (16,))[0]
    most = max(tags.get(_LARGEST, (0,)))
    bits = max(8, int(most).bit_length()) if 0 < most < 2**bits else bits  # of a camera with 12 bits in words of 16
    upper = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    grey = Image.fromarray(255 - upper if tags.get(_PHOTOMETRIC) == 0 else upper)
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


# ---- the scan of a data set ----


def check_image(file: Path) -> str | None:
    """Return why a file cannot be used ("missing", "empty", "truncated or broken", ...), or None if it can.

    Two small reads suffice for a JPEG or PNG file with its size in the header and its end marker in place (15
    microseconds, for the 123,287 images of COCO at every start); `decode` checks all others.
    """
    try:
        with regular_file(file) as (stream, found):
            head = os.pread(stream.fileno(), _HEAD, 0)
            tail = os.pread(stream.fileno(), _TAIL, max(0, found.st_size - _TAIL))
        width_height = _quick_size(head, tail)
        if width_height is None:
            decode(read_image_file(file))
        elif width_height[0] * width_height[1] > MAX_PIXELS:
            return _too_large(*width_height)
    except UnusableImage as reason:
        return str(reason)
    return None


def scan_images(files: Iterable[Path]) -> dict[Path, str]:
    """Return the files that cannot be used, with the reason, in the given order."""
    files = list(files)
    reasons = in_order(check_image, ((file,) for file in files), _THREADS)
    bar = Progress("checking image files", len(files), "image")
    return {file: reason for file, reason in zip(files, bar.over(reasons)) if reason}


def _quick_size(head: bytes, tail: bytes) -> tuple[int, int] | None:
    """Read (width, height) from the first and last bytes of a PNG or JPEG file that `decode` is sure to accept.

    None if they do not show that: without an end marker, or of a kind that `decode` may refuse.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        usual = head[12:16] == b"IHDR" and len(head) >= 26 and not (head[24] == 16 and b"tRNS" in head)
        return struct.unpack(">II", head[16:24]) if usual and b"IEND" in tail else None
    if not head.startswith(b"\xff\xd8\xff") or b"\xff\xd9" not in tail:
        return None
    place = 2
    while place + 10 <= len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame; those three are tables
            bits, height, width, channels = struct.unpack(">BHHB", head[place + 4 : place + 10])
            usual = marker <= 0xC2 and bits == 8 and channels in (1, 3, 4)  # not lossless, arithmetic or 12 bits
            return (width, height) if usual and width and height else None
        place += 2 + length
    return None
