"""Users' photographs: every kind of file is decoded as a person sees it, or refused with its reason."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hostile import BAD, GOOD, _exif, chunk, picture, png, tiff
from PIL import Image

from src.config.kinds import Preprocessing
from src.data import image_formats
from src.data.image_files import ImageFiles
from src.data.image_formats import _is_installed
from src.data.images import ImageSource
from src.data.photographs import UnusableImage, check_image, decode, read_photograph

RGB = np.asarray(picture()).astype(int)


def read(path) -> np.ndarray:
    pixels = read_photograph(os.fspath(path)).pixels
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
    return pixels.astype(int)


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_every_kind_is_decoded(tmp_path, name):
    GOOD[name](tmp_path / name)
    assert read(tmp_path / name).size > 0


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_usable_image_is_refused_with_its_reason(tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UnusableImage) as refused:
        read(tmp_path / name)
    assert reason in str(refused.value) or (name == "folder.jpg" and "a folder" in str(refused.value))


def test_a_file_that_may_not_be_read(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    before = os.geteuid()
    if before == 0:
        os.chmod(tmp_path, 0o777)
        os.seteuid(65534)
    try:
        with pytest.raises(UnusableImage, match=r"cannot be read \(Permission denied\)"):
            read(tmp_path / "x.png")
    finally:
        os.seteuid(before)


# What each Exif orientation says of the picture as it lies: from which of its rows and columns the upright one is made.
UPRIGHT = {
    1: lambda rgb: rgb,
    2: lambda rgb: rgb[:, ::-1],
    3: lambda rgb: rgb[::-1, ::-1],
    4: lambda rgb: rgb[::-1],
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: rgb.transpose(1, 0, 2)[:, ::-1],  # a quarter turn clockwise: what was at the left is at the top
    7: lambda rgb: rgb[::-1, ::-1].transpose(1, 0, 2),
    8: lambda rgb: rgb.transpose(1, 0, 2)[::-1],
    9: lambda rgb: rgb,  # there is none
}
KINDS = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
if _is_installed("AVIF"):
    KINDS["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
if _is_installed("HEIF"):
    KINDS["HEIF"] = {"quality": -1}  # lossless


def saved(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientations(kind, orientation):
    lying, got = (
        np.asarray(decode(saved(picture(), kind, **KINDS[kind], **exif))).astype(int)
        for exif in ({}, {"exif": _exif(orientation).tobytes()})
    )
    np.testing.assert_array_equal(got, UPRIGHT[orientation](lying))
    assert np.abs(lying - RGB).max() < 40  # JPEG loses most


def test_another_broken_tag_does_not_hide_the_orientation():
    """A resolution that is a text: Pillow reads the data and cannot write it anew."""
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHII", 0x11A, 2, 1, 0)
    broken = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    assert decode(saved(picture(), "JPEG", exif=broken)).size == (32, 48)


PALETTE = chunk(b"PLTE", bytes([0, 0, 0, 10, 20, 30, 200, 100, 0]))
WHITE, GREYS = [255] * 3, [[0] * 3, [0x12] * 3, [0x80] * 3, [255] * 3]
SIXTEEN = (0, 0x1234, 0x8000, 65535)


def shorts(order: str, *values: int) -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", shorts(">", *values))


def row(*data: bytes) -> bytes:
    return b"\0" + b"".join(data)


# A fifth of (200, 100, 0) on four fifths of white is (244, 224, 204).
PNG = {
    "grey, 16 bits": (png(4, 1, 16, 0, row(shorts(">", *SIXTEEN))), GREYS),
    "grey, 16 bits, one transparent": (
        png(4, 1, 16, 0, row(shorts(">", *SIXTEEN)), transparent(0x1234)),
        [GREYS[0], WHITE, *GREYS[2:]],
    ),
    "grey, 16 bits, its neighbour transparent": (
        png(4, 1, 16, 0, row(shorts(">", *SIXTEEN)), transparent(0x1235)),
        GREYS,
    ),
    "grey and alpha, 16 bits": (png(2, 1, 16, 4, row(shorts(">", 0x1234, 65535, 0, 0))), [[0x12] * 3, WHITE]),
    "RGB, 16 bits": (png(1, 1, 16, 2, row(shorts(">", 0x1234, 0x8000, 255))), [[0x12, 0x80, 0]]),
    "RGBA, 16 bits": (png(2, 1, 16, 6, row(shorts(">", 0x1234, 0, 0, 65535, 0, 0, 0, 0))), [[0x12, 0, 0], WHITE]),
    "grey, 1 bit": (png(8, 1, 1, 0, row(b"\x5f")), [[0] * 3, WHITE] * 2 + [WHITE] * 4),
    "grey, 1 bit, black transparent": (png(8, 1, 1, 0, row(b"\x5f"), transparent(0)), [WHITE] * 8),
    "grey, 2 bits": (png(4, 1, 2, 0, row(b"\x1b")), [[0] * 3, [85] * 3, [170] * 3, WHITE]),
    "grey, 2 bits, one transparent": (
        png(4, 1, 2, 0, row(b"\x1b"), transparent(1)),
        [[0] * 3, WHITE, [170] * 3, WHITE],
    ),
    "grey, 4 bits, one transparent": (png(2, 1, 4, 0, row(b"\x3a"), transparent(3)), [WHITE, [170] * 3]),
    "grey, one transparent": (png(2, 1, 8, 0, row(b"\1\2"), transparent(2)), [[1] * 3, WHITE]),
    "RGB, one transparent": (png(2, 1, 8, 2, row(b"\1\2\3\1\2\4"), transparent(1, 2, 3)), [WHITE, [1, 2, 4]]),
    "grey and alpha": (png(2, 1, 8, 4, row(bytes([100, 51, 7, 0]))), [[224] * 3, WHITE]),
    "RGBA": (png(2, 1, 8, 6, row(bytes([200, 100, 0, 51, 0, 0, 0, 0]))), [[244, 224, 204], WHITE]),
    "palette": (png(3, 1, 8, 3, row(b"\0\1\2"), PALETTE), [[0] * 3, [10, 20, 30], [200, 100, 0]]),
    "palette, one transparent": (
        png(3, 1, 8, 3, row(b"\0\1\2"), PALETTE + chunk(b"tRNS", b"\0")),
        [WHITE, [10, 20, 30], [200, 100, 0]],
    ),
    "palette with alpha, 2 bits": (
        png(3, 1, 2, 3, row(b"\x18"), PALETTE + chunk(b"tRNS", bytes([255, 0, 51]))),
        [[0] * 3, WHITE, [244, 224, 204]],
    ),
}


def tiffs(order: str) -> dict[str, tuple[bytes, list]]:
    """Files of one byte order: II or MM."""
    sign = {"II": "<", "MM": ">"}[order]
    grey, deflate = shorts(sign, *SIXTEEN), {259: [8]}
    premultiplied = shorts(sign, 0x4000, 0x2000, 0, 0x8000)  # half of (128, 64, 0): half of white is added
    ycbcr = Image.new("RGB", (4, 4), (200, 100, 50)).convert("YCbCr").tobytes()
    return {
        "grey, 16 bits": (tiff(order, 4, 1, [16], 1, grey), GREYS),
        "grey, 12 bits in words of 16": (
            tiff(order, 3, 1, [16], 1, shorts(sign, 0, 0x123, 4095), {281: [4095]}),
            [[0] * 3, [0x12] * 3, WHITE],
        ),
        "grey, 16 bits, deflated": (tiff(order, 4, 1, [16], 1, zlib.compress(grey), deflate), GREYS),
        "RGB, 16 bits": (tiff(order, 1, 1, [16] * 3, 2, shorts(sign, 0x1234, 0x8000, 255)), [[0x12, 0x80, 0]]),
        "RGBA, 16 bits": (tiff(order, 1, 1, [16] * 4, 2, shorts(sign, 9, 9, 9, 0), {338: [2]}), [WHITE]),
        "RGBA, 16 bits, premultiplied": (
            tiff(order, 1, 1, [16] * 4, 2, premultiplied, {338: [1]}),
            [[191, 159, 127]],
        ),
        "RGBA": (tiff(order, 1, 1, [8] * 4, 2, bytes([200, 100, 0, 51]), {338: [2]}), [[244, 224, 204]]),
        "RGB and a channel of no meaning": (
            tiff(order, 1, 1, [8] * 4, 2, bytes([9, 8, 7, 0]), {338: [0]}),
            [[9, 8, 7]],
        ),
        "grey and alpha": (tiff(order, 1, 1, [8] * 2, 1, bytes([100, 51]), {338: [2]}), [[224] * 3]),
        "palette and alpha": (
            tiff(order, 2, 1, [8] * 2, 3, bytes([5, 255, 5, 0]), {320: [257 * i for i in range(256)] * 3, 338: [2]}),
            [[5] * 3, WHITE],
        ),
        "palette, 4 bits": (
            tiff(order, 2, 1, [4], 3, b"\x05", {320: [17 * 257 * i for i in range(16)] * 3}),
            [[0] * 3, [85] * 3],
        ),
        "white is 0": (tiff(order, 2, 1, [8], 0, bytes([0, 200])), [WHITE, [55] * 3]),
        "white is 0, 2 bits": (tiff(order, 4, 1, [2], 0, b"\x1b"), [WHITE, [170] * 3, [85] * 3, [0] * 3]),
        "white is 0, 1 bit": (tiff(order, 8, 1, [1], 0, b"\x0f"), [WHITE] * 4 + [[0] * 3] * 4),
        "CMYK": (tiff(order, 1, 1, [8] * 4, 5, bytes([0, 128, 255, 0])), [[255, 127, 0]]),
        "YCbCr": (tiff(order, 4, 4, [8] * 3, 6, zlib.compress(ycbcr), {530: [1, 1], **deflate}), [[200, 100, 50]] * 16),
        "LAB": (tiff(order, 1, 1, [8] * 3, 8, bytes([128, 0, 0])), [[119] * 3]),  # L* 50.2: Y 18.6 %
    }


TIFF = {f"{name}, {order}": file for order in ("II", "MM") for name, file in tiffs(order).items()} | {
    "white is 0, 16 bits": (tiff("II", 4, 1, [16], 0, shorts("<", *SIXTEEN)), [WHITE, [237] * 3, [127] * 3, [0] * 3]),
    "12 bits": (tiff("II", 2, 1, [12], 1, b"\x80\x01\x23"), [[0x80] * 3, [0x12] * 3]),
}


@pytest.mark.parametrize("data, want", [*PNG.values(), *TIFF.values()], ids=[*PNG, *TIFF])
def test_every_depth_and_colour_by_hand(data, want):
    assert np.asarray(decode(data)).reshape(-1, 3).tolist() == want


REFUSED = {
    "32-bit floating-point pixels": [tiff(o, 1, 1, [32], 1, bytes(4), {339: [3]}) for o in ("II", "MM")],
    "signed pixels": [tiff(o, 1, 1, [b], 1, bytes(4), {339: [2]}) for o in ("II", "MM") for b in (8, 16, 32)],
    "32-bit pixels": [tiff("II", 1, 1, [32], 1, bytes(4))],
    "uncompressed YCbCr": [tiff(o, 1, 1, [8] * 3, 6, bytes(3), {530: [1, 1]}) for o in ("II", "MM")],
    "a palette of 8 bits": [tiff(o, 1, 1, [8], 3, b"\5", {320: [*range(256)] * 3}) for o in ("II", "MM")],
    "16 bits in separate planes": [tiff("II", 1, 1, [16] * 3, 2, bytes(6), {284: [2]})],
    "a transparent colour of 16 bits": [png(1, 1, 16, 2, bytes(7), transparent(0, 0, 0))],
    "of an unsupported kind": [
        *(
            tiff("MM", 4, 1, [16], 0, bytes(8)),
            tiff("MM", 2, 1, [12], 1, bytes(3)),
            tiff("II", 1, 1, [64], 1, bytes(8)),
        ),
        *(tiff("II", 1, 1, [16] * 2, 1, bytes(4)), png(1, 1, 3, 0, bytes(2))),
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_read_right_is_refused(reason):
    for data in REFUSED[reason]:
        with pytest.raises(UnusableImage, match=reason):
            decode(data)


@pytest.mark.parametrize(
    "brands, reason",
    [
        (b"heic\0\0\0\0mif1heic", "HEIC needs pip install pillow-heif"),
        (b"mif1\0\0\0\0mif1heixmiaf", "HEIC needs pip install pillow-heif"),
        (b"avif\0\0\0\0avifmif1miaf", r"AVIF needs pip install 'pillow>=11\.3'"),
        (b"mif1\0\0\0\0mif1avif", r"AVIF needs pip install 'pillow>=11\.3'"),
        (b"crx \0\0\0\1crx isom", "a raw photograph: save it as JPEG"),
        (b"mp42\0\0\0\0isommp42", "not an image"),
    ],
)
def test_what_a_format_needs_is_named(brands, reason, monkeypatch, tmp_path):
    """In photographs and, by the scan, in training data."""
    monkeypatch.setattr(image_formats, "_is_installed", lambda format: False)
    data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)
    with pytest.raises(UnusableImage, match=reason):
        decode(data)
    (tmp_path / "x.jpg").write_bytes(data)
    assert re.fullmatch(reason, check_image(tmp_path / "x.jpg"))


def test_colours_of_lossy_files():
    """CMYK as Adobe writes it in JPEG files: inverted."""
    orange = Image.new("RGB", (16, 16), (200, 100, 50))
    for data in (
        saved(orange.convert("CMYK"), "JPEG", quality=95),
        saved(orange, "TIFF", compression="jpeg", quality=95),
        saved(orange.convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
        saved(orange, "WEBP", quality=95),
    ):
        np.testing.assert_allclose(np.asarray(decode(data))[8, 8], (200, 100, 50), atol=3)


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 51))
    image.putpixel((1, 0), (0, 0, 0, 0))
    webp = saved(image, "WEBP", lossless=True, exact=True)
    assert np.asarray(decode(webp)).tolist() == [[[244, 224, 204], WHITE]]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 0)
    assert np.asarray(decode(saved(palette, "GIF", transparency=0))).tolist() == [[[10, 20, 30], WHITE]]


def test_an_animation_is_its_first_frame(tmp_path):
    for name in ("animated.gif", "animated.webp", "pages.tiff"):
        GOOD[name](tmp_path / name)
        assert np.abs(read(tmp_path / name) - RGB).mean() < 12, name  # a palette, or lossy; the others are black


def test_the_key_is_of_the_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    picture((4, 4)).save(tmp_path / "c.png")
    one, same, other = (read_photograph(str(tmp_path / name)).key for name in ("a.png", "b.png", "c.png"))
    assert one == same != other and 0 <= one < 2**64


@pytest.mark.parametrize("resize_after_normalize", [False, True])
def test_preprocessing_is_that_of_training(tmp_path, resize_after_normalize):
    """Bit for bit what MindData's pipeline makes of the same files."""
    scaling = Preprocessing(1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    files = [tmp_path / f"{number}.{kind}" for number, kind in enumerate(("jpg", "png", "jpg"))]
    for file, size in zip(files, ((90, 60), (31, 77), (40, 40))):
        picture(size).save(file)
    source = ImageSource(ImageFiles(files), 40, scaling, 1, resize_after_normalize)
    (batch,) = source.batches([np.arange(3)])
    for file, want in zip(files, batch):
        np.testing.assert_array_equal(source.preprocess(read_photograph(str(file)).pixels), want)
