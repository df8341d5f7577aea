"""Files as users have them, and as nobody should: made with Pillow, each with what becomes of it. And hostile text."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# Ends scripts, styles, titles, comments and attributes of either quote; entities, templates, and control characters.
TEXT = (
    "</script><img src=x onerror=alert(1)> </style></title><svg onload=alert(1)> <!--<script> --> "
    "\" autofocus onfocus=alert(1) ' onclick='alert(1) &lt;b&gt; & &amp; {{ 7*7 }} {% raw %} {# $x "
    "\x01\x08\x1b[31m\x7f\x9f"
)


def picture(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Smooth, with other colours in every corner."""
    corners = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [220, 220, 60]]], np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file of any kind. rows: uncompressed, each begun by its filter, 0; extra: chunks behind the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    order: str, width: int, height: int, bits: list[int], photometric: int, data: bytes, more: dict | None = None
) -> bytes:
    """A TIFF file of any kind, in one strip. order: II or MM; photometric: as the standard counts them; more: tags."""
    shorts = {256: [width], 257: [height], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)], 278: [height]}
    shorts |= {273: [0], 279: [len(data)]} | (more or {})
    sign = {"II": "<", "MM": ">"}[order]
    behind = 8 + 2 + 12 * len(shorts) + 4
    shorts[273] = [behind + sum(2 * len(values) for values in shorts.values() if len(values) > 2)]
    entries, long = b"", b""
    for tag, values in sorted(shorts.items()):
        packed = struct.pack(f"{sign}{len(values)}H", *values)
        if len(values) > 2:
            entries += struct.pack(sign + "HHII", tag, 3, len(values), behind + len(long))
            long += packed
        else:
            entries += struct.pack(sign + "HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = order.encode() + struct.pack(sign + "HIH", 42, 8, len(shorts))
    return head + entries + bytes(4) + long + data


def _twelve_bits(data: bytes) -> bytes:
    """A JPEG file that says that it has 12 bits per sample."""
    place = data.index(b"\xff\xc0") + 4
    return data[:place] + b"\x0c" + data[place + 1 :]


def _save(path: Path, image: Image.Image | None = None, **settings) -> None:
    (image or picture()).save(path, **settings)


def _changed(path: Path, change) -> None:
    """A good file, whose bytes are then changed."""
    _save(path)
    path.write_bytes(change(path.read_bytes()))


def _exif(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _translucent() -> Image.Image:
    image = picture()
    image.putalpha(90)
    return image


def _frames() -> dict:
    return {"save_all": True, "append_images": [Image.new("RGB", (48, 32), "black")] * 2}


def _broken_table(data: bytes) -> bytes:
    """Good ends and a bad Huffman table."""
    place = data.index(b"\xff\xc4") + 5
    return data[:place] + b"\xff" * 16 + data[place + 16 :]


def _make_pipe(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(300_000_000)  # takes no room


# name -> (what makes the file, why it cannot be used or None)
GOOD = {
    "grey.jpg": lambda p: _save(p, picture().convert("L")),
    "cmyk.jpg": lambda p: _save(p, picture().convert("CMYK")),
    "png named.jpg": lambda p: _save(p, format="PNG"),
    "grey16.png": lambda p: _save(p, Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30))),
    "grey16.tiff": lambda p: _save(p, Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30))),
    "rgb16.png": lambda p: p.write_bytes(png(2, 2, 16, 2, (b"\0" + struct.pack(">6H", *[40000] * 6)) * 2)),
    "grey and alpha.png": lambda p: _save(p, _translucent().convert("LA")),
    "alpha.webp": lambda p: _save(p, _translucent()),
    "palette.png": lambda p: _save(p, picture().convert("P"), transparency=3),
    "bits.png": lambda p: _save(p, picture().convert("1")),
    "1x1.png": lambda p: _save(p, picture((1, 1))),
    "1x5000.png": lambda p: _save(p, picture((1, 5000))),
    "animated.gif": lambda p: _save(p, **_frames()),
    "animated.webp": lambda p: _save(p, **_frames()),
    "pages.tiff": lambda p: _save(p, **_frames()),
    "turned.jpg": lambda p: _save(p, exif=_exif(6)),
    "bad exif.jpg": lambda p: _save(p, exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage"),
    'it\'s "quoted".png': _save,
    "naïve 写真 🐕.png": _save,
    "two\nlines.png": _save,
    "a|b.png": _save,
    "seed=3.png": _save,
    os.fsdecode(b"latin1 \xe9.png"): _save,
}
BAD = {
    "empty.jpg": (lambda p: p.write_bytes(b""), "empty"),
    "text.jpg": (lambda p: p.write_text("no image"), "not an image"),
    "program.png": (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    "truncated.jpg": (lambda p: _changed(p, lambda data: data[: len(data) // 2]), "truncated or broken"),
    "truncated.png": (lambda p: _changed(p, lambda data: data[: len(data) // 2]), "truncated or broken"),
    "zeros.png": (lambda p: _changed(p, lambda d: d[:60] + bytes(40) + d[100:]), "truncated or broken"),
    "table.jpg": (lambda p: _changed(p, _broken_table), "truncated or broken"),
    "bomb.png": (
        lambda p: p.write_bytes(png(10_000, 10_000, 1, 0, bytes(1251) * 10_000)),  # 12 KB; Pillow only warns of it
        "10000 x 10000 pixels, more than 64,000,000",
    ),
    "header bomb.png": (lambda p: p.write_bytes(png(2**31 - 1, 2**31 - 1, 8, 2, b"")), "more than 64,000,000 pixels"),
    "text bomb.png": (
        lambda p: p.write_bytes(
            png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9)))
        ),
        "truncated or broken",
    ),
    "huge.jpg": (_huge, "more than 200,000,000 bytes"),
    "floats.tiff": (
        lambda p: _save(p, Image.fromarray(np.ones((4, 4), np.float32))),
        "32-bit floating-point pixels",
    ),
    "signed.tiff": (lambda p: p.write_bytes(tiff("II", 1, 1, [16], 1, b"\1\1", {339: [2]})), "signed pixels"),
    "raw.tif": (lambda p: p.write_bytes(tiff("II", 1, 1, [8], 1, b"\1", {254: [1]})), "a raw photograph"),
    "camera.raf": (lambda p: p.write_bytes(b"FUJIFILMCCD-RAW 0201"), "a raw photograph"),
    "jpeg12.jpg": (lambda p: _changed(p, _twelve_bits), "a JPEG file that is broken, or of a kind that is not read"),
    "folder.jpg": (lambda p: p.mkdir(), "a folder without images"),
    "dangling.jpg": (lambda p: p.symlink_to("nowhere.jpg"), "missing"),
    "loop.jpg": (lambda p: p.symlink_to("loop.jpg"), "cannot be read"),
    "pipe.jpg": (_make_pipe, "not a regular file"),
}


def make_hostile(folder: Path) -> None:
    """Write all of GOOD and BAD into `folder`."""
    for name, make in GOOD.items():
        make(folder / name)
    for name, (make, _) in BAD.items():
        make(folder / name)
