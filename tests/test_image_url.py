"""Images as data: URLs: files that every server reads go as they are, others as JPEG files that look the same."""

import base64
import io

import numpy as np
import pytest
from hostile import png
from PIL import Image

from src.data.image_url import LONG_SIDE, image_url, thumbnail_url
from src.data.photographs import MAX_PIXELS


def picture(size=(60, 40)) -> Image.Image:
    """Smooth, with other colours in every corner."""
    corners = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [220, 220, 60]]], np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def saved(image, kind, **settings) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def opened(url) -> tuple[str, bytes, Image.Image]:
    head, data = url.split(",")
    data = base64.b64decode(data, validate=True)
    return head, data, Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_files_go_as_they_are(kind, mode):
    data = saved(picture((LONG_SIDE, 40)).convert(mode), kind)
    head, sent, _ = opened(image_url(data))
    assert head == f"data:image/{kind.lower()};base64" and sent == data


def with_alpha() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def on_white() -> Image.Image:
    """`with_alpha`, by hand."""
    pixels = np.asarray(with_alpha(), float)
    share = pixels[..., 3:] / 255
    return Image.fromarray((pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8))


def turned() -> Image.Exif:
    """To be shown turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ODD = {
    "PNG with alpha": saved(with_alpha(), "PNG"),
    "PNG with palette": saved(picture().quantize(256), "PNG"),
    "CMYK JPEG": saved(picture().convert("CMYK"), "JPEG", quality=95),
    "WebP": saved(picture(), "WEBP", quality=95),
    "WebP with alpha": saved(with_alpha(), "WEBP", lossless=True, exact=True),
    "GIF": saved(picture(), "GIF"),
    "BMP": saved(picture(), "BMP"),
    "TIFF": saved(picture(), "TIFF"),
    "JPEG with 4 MB behind it": saved(picture(), "JPEG") + bytes(4_000_000),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_other_files_become_jpeg_and_look_the_same(data):
    head, sent, image = opened(image_url(data))
    assert head == "data:image/jpeg;base64" and len(sent) < 10_000
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (60, 40))
    want = on_white() if data in (ODD["PNG with alpha"], ODD["WebP with alpha"]) else picture()
    error = np.abs(np.asarray(image, float) - np.asarray(want, float))
    assert error.mean() < 6  # of 255; channels that are swapped or inverted are off by 50 and more


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images_are_scaled_down(kind):
    head, _, image = opened(image_url(saved(picture((1500, 3000)), kind)))
    assert head == "data:image/jpeg;base64" and image.size == (LONG_SIDE // 2, LONG_SIDE)
    error = np.abs(np.asarray(image, float) - np.asarray(picture((LONG_SIDE // 2, LONG_SIDE)), float))
    assert error.mean() < 3


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (saved(picture(), "PNG")[:-60], "broken"),
        (saved(picture((400, 400)), "JPEG")[:-1000], "broken"),
        (saved(Image.new("1", (MAX_PIXELS // 4000 + 1, 4000)), "PNG"), "more than 64,000,000"),  # a bomb of 8 KB
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "bomb"],
)
def test_what_cannot_be_used_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        image_url(data)


def transparent_corner() -> bytes:
    """An RGB file of which one colour is transparent."""
    return saved(Image.new("RGB", (2, 2), (9, 9, 9)), "PNG", transparency=(9, 9, 9))


@pytest.mark.parametrize("url", [image_url, lambda data: thumbnail_url(data, 100)], ids=["question", "thumbnail"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turned_photograph_is_sent_upright(url, kind):
    """As the model sees it: some readers follow Exif data, others do not."""
    _, _, image = opened(url(saved(picture((80, 40)), kind, exif=turned())))
    assert (image.format, image.size, dict(image.getexif())) == ("JPEG", (40, 80), {})
    want = np.asarray(picture((80, 40)), float).transpose(1, 0, 2)[:, ::-1]  # what was at the left is at the top
    assert np.abs(np.asarray(image, float) - want).mean() < 3


def test_a_transparent_colour_and_sixteen_bits_are_not_left_to_the_server():
    for data in (transparent_corner(), png(2, 1, 16, 2, b"\0" + b"\xff\xff" * 6)):
        head, _, image = opened(image_url(data))
        assert head == "data:image/jpeg;base64" and np.asarray(image).min() == 255


def test_thumbnails_are_small_jpeg():
    head, data, image = opened(thumbnail_url(saved(picture((300, 600)), "JPEG"), 100))
    assert head == "data:image/jpeg;base64" and len(data) < 5_000
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 100))
    error = np.abs(np.asarray(image, float) - np.asarray(picture((50, 100)), float))
    assert error.mean() < 3
    head, _, image = opened(thumbnail_url(ODD["PNG with palette"], 100))
    assert head == "data:image/jpeg;base64" and image.size == (60, 40)
    with pytest.raises(ValueError, match="broken"):
        thumbnail_url(saved(picture((400, 400)), "JPEG")[:-1000], 100)
