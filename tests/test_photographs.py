"""Users' photographs: every kind of file is decoded as a person sees it, or refused with its reason."""

import io
import os

import numpy as np
import pytest
from hostile import BAD, GOOD, _exif, picture
from PIL import Image, ImageOps

from src.data.image_check import UnusableImage, load_image
from src.data.image_files import ImageFiles
from src.data.images import ImageSource
from src.data.photographs import read_photograph, upright_rgb

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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(kind, orientation):
    """Against Pillow's own function; and 6, as phones held upright write it, by hand."""
    file = io.BytesIO()
    picture().save(file, kind, exif=_exif(orientation))
    with Image.open(file) as image:
        want = ImageOps.exif_transpose(image).convert("RGB")
    got = upright_rgb(load_image(file))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    if orientation == 6 and kind == "PNG":  # a quarter turn clockwise: what was at the left is at the top
        np.testing.assert_array_equal(np.asarray(got), np.asarray(picture()).transpose(1, 0, 2)[:, ::-1])


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 51))  # a fifth
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "x.png")
    np.testing.assert_allclose(read(tmp_path / "x.png"), [[[244, 224, 204], [255, 255, 255]]], atol=1)
    image.convert("LA").save(tmp_path / "grey.png")
    assert read(tmp_path / "grey.png")[0, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert read(tmp_path / "palette.gif").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "key.png", transparency=(9, 9, 9))
    assert read(tmp_path / "key.png").tolist() == [[[255, 255, 255]]]


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    for kind in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"x.{kind}")
        assert read(tmp_path / f"x.{kind}")[0, :, 1].tolist() == [0, 0, 1, 0x12, 255]
    GOOD["rgb16.png"](tmp_path / "rgb.png")
    assert read(tmp_path / "rgb.png").tolist() == [[[40000 >> 8] * 3] * 2] * 2


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
    settings = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "scale": 1 / 255, "image_size": 40, "workers": 1}
    files = [tmp_path / f"{number}.{kind}" for number, kind in enumerate(("jpg", "png", "jpg"))]
    for file, size in zip(files, ((90, 60), (31, 77), (40, 40))):
        picture(size).save(file)
    source = ImageSource(ImageFiles(files), resize_after_normalize=resize_after_normalize, **settings)
    (batch,) = source.batches([np.arange(3)])
    for file, want in zip(files, batch):
        np.testing.assert_array_equal(source.preprocess(read_photograph(str(file)).pixels), want)
