"""Which image files can be used: a scan that is cheap enough for the 123,287 images of COCO at every start.

Two small reads settle a JPEG or PNG file that has its size in the header and its end marker in place (15 microseconds);
Pillow settles all others. Formats are listed one by one: Pillow starts external programs for some (EPS).
"""

import io
import os
import struct
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from src.progress import Progress

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
MAX_PIXELS = 64_000_000  # a decompression bomb is a small file with a huge picture; 64 million pixels are 192 MB
_HEAD, _TAIL = 4096, 32
_THREADS = 8


class UnusableImage(ValueError):
    """Says why a file cannot be used."""


def is_complete(head: bytes, tail: bytes) -> bool:
    """True for a JPEG or PNG file that ends with its end marker; `tail` are its last bytes (32 are enough)."""
    if head.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" in tail[-_TAIL:]
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in tail[-_TAIL:]


def decodable(data: bytes) -> bytes:
    """A file of `FORMATS` as bytes that MindData's Decode takes: unchanged, or as an RGB BMP file without alpha.

    MindData 2.9 crashes (SIGSEGV, SIGFPE) on every error inside libjpeg: its error_exit callback returns. So Pillow
    must have decoded a JPEG file before, here at an eighth of its size. BMP is for what Decode does not take
    (WebP, GIF) or may not take (no end marker). Raises whatever Pillow raises, ValueError on more than MAX_PIXELS.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(_too_large(image.width, image.height))
        if is_complete(data, data[-_TAIL:]):
            if data.startswith(b"\xff\xd8"):
                image.draft(None, (1, 1))
                image.load()
            return data
        out = io.BytesIO()
        image.convert("RGB").save(out, "BMP")
    return out.getvalue()


def check_image(file: Path) -> str | None:
    """Why the file cannot be used ("missing", "empty", "truncated or broken", ...), or None if it can."""
    try:
        with open(file, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size == 0:
                return "empty"
            head = os.pread(stream.fileno(), _HEAD, 0)
            tail = os.pread(stream.fileno(), _TAIL, max(0, size - _TAIL))
            width_height = _quick_size(head) if is_complete(head, tail) else None
            if width_height:
                return _too_large(*width_height) if width_height[0] * width_height[1] > MAX_PIXELS else None
            return check_by_decoding(file)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def scan_images(files: Iterable[Path]) -> dict[Path, str]:
    """The files that cannot be used, with the reason, in the given order."""
    files = list(files)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; the reasons say enough
        reasons = Progress("checking image files", len(files), "image").over(pool.map(check_image, files))
        return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _quick_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) from the first bytes of a PNG or JPEG file; None where they do not say."""
    if head.startswith(b"\x89PNG"):
        return struct.unpack(">II", head[16:24]) if head[12:16] == b"IHDR" and len(head) >= 24 else None
    place = 2
    while place + 9 <= len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame; those three are tables
            height, width = struct.unpack(">HH", head[place + 5 : place + 9])
            return (width, height) if width and height else None
        place += 2 + length
    return None


def check_by_decoding(file: Path | BinaryIO) -> str | None:
    """Like `check_image`, but surer and slower: by decoding the whole file."""
    try:
        load_image(file)
    except UnusableImage as reason:
        return str(reason)
    return None


def load_image(file: Path | BinaryIO) -> Image.Image:
    """A decoded image of `FORMATS`, of an animation the first frame. Raises UnusableImage."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImage(_too_large(image.width, image.height))
            image.load()
            return image
    except UnusableImage:
        raise
    except Image.DecompressionBombError:
        raise UnusableImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise UnusableImage("not an image") from None
    except Exception:  # Pillow's decoders raise many types on broken files, all mean just that
        raise UnusableImage("truncated or broken") from None


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
