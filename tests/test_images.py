"""Batches of images against Pillow and NumPy, file by file, in the order asked for."""

import gc
import io
import os

import numpy as np
import pytest
from hostile import GOOD
from PIL import Image

from src.config.kinds import Preprocessing
from src.data.image_files import ImageFiles
from src.data.images import ImageSource
from src.data.photographs import read_photograph
from src.runtime.errors import InputError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}
SIZE = 32


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A smooth coloured picture of its own for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Rows [h, ...] resized to [size, ...]: between the two rows whose centres are nearest, without a filter."""
    centres = np.clip((np.arange(size) + 0.5) * len(pixels) / size - 0.5, 0, len(pixels) - 1)
    upper = np.minimum(centres.astype(int), len(pixels) - 2)
    share = (centres - upper).reshape(-1, 1, 1)
    return (1 - share) * pixels[upper] + share * pixels[upper + 1]


def expected(file, mean, std, scale, size=SIZE) -> np.ndarray:
    """(p * scale - mean) / std, float32 [3,H,W], after a bilinear resize."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"), np.float64)
    pixels = bilinear(bilinear(pixels, size).transpose(1, 0, 2), size).transpose(1, 0, 2)
    return ((pixels * scale - mean) / std).transpose(2, 0, 1).astype(np.float32)


def source(files, **settings) -> ImageSource:
    scaling = Preprocessing(**{name: settings.pop(name, value) for name, value in IMAGENET.items()})
    return ImageSource(ImageFiles(files), SIZE, scaling, workers=2, **settings)


@pytest.fixture
def files(tmp_path):
    """24 PNG and JPEG files that have the target size."""
    paths = [tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}" for i in range(24)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    return paths


def test_rows_keep_the_order_and_every_call_starts_anew(files):
    images = source(files)
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(24).reshape(6, 4)
        got = list(images.batches(order))
        assert [(batch.shape, batch.dtype) for batch in got] == [((4, 3, SIZE, SIZE), np.float32)] * 6
        # Compared after the loop: a batch must not be overwritten by a later one.
        want = np.stack([expected(files[i], **IMAGENET) for i in order.ravel()])
        np.testing.assert_allclose(np.concatenate(got), want, rtol=0, atol=2e-6)


def test_repeated_indices_and_no_batches(files):
    (batch,) = source(files).batches([np.array([7, 7, 3])])
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_allclose(batch[2], expected(files[3], **IMAGENET), rtol=0, atol=2e-6)
    assert list(source(files).batches([])) == []
    with pytest.raises(ValueError, match="one length"):
        list(source(files).batches([np.arange(4), np.arange(3)]))


@pytest.mark.parametrize("size", [(100, 60), (20, 45)], ids=["smaller", "larger"])
def test_resize(tmp_path, size):
    picture(3, size).save(tmp_path / "x.png")
    (batch,) = source([tmp_path / "x.png"]).batches([np.array([0])])
    np.testing.assert_allclose(batch[0], expected(tmp_path / "x.png", **IMAGENET), rtol=0, atol=0.0176)  # a grey level


def test_caffe_statistics(files):
    settings = {"mean": (123.68, 116.779, 103.939), "std": (1.0, 1.0, 1.0), "scale": 1.0}
    (batch,) = source(files, **settings).batches([np.arange(3)])
    want = np.stack([expected(files[i], **settings) for i in range(3)])
    np.testing.assert_allclose(batch, want, rtol=0, atol=1e-4)


def test_as_released(tmp_path):
    """Never divided by 255, and resized after normalising: a uniform picture shows the arithmetic, a ramp the order."""
    settings = {**IMAGENET, "scale": 1.0, "resize_after_normalize": True}
    Image.new("RGB", (64, 48), (100, 50, 200)).save(tmp_path / "flat.png")
    ramp = np.repeat(np.arange(0, 128, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(8, axis=0)  # [8,128,3]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    released = source([tmp_path / "flat.png", tmp_path / "ramp.png"], **settings)
    ((flat, fine),) = released.batches([np.array([0, 1])])
    want = (np.array([100.0, 50.0, 200.0]) - IMAGENET["mean"]) / IMAGENET["std"]
    np.testing.assert_allclose(flat, np.broadcast_to(want[:, None, None], (3, SIZE, SIZE)), rtol=1e-5)
    # 128 columns to 32: column k lies at 4k + 1.5 of the ramp, a half that resizing bytes would round away.
    np.testing.assert_allclose(fine[0, 0], (4 * np.arange(SIZE) + 1.5 - 0.485) / 0.229, rtol=1e-5)


ODD = {
    "grey.jpg": lambda p, f: p.convert("L").save(f),
    "grey.png": lambda p, f: p.convert("L").save(f),
    "alpha.png": lambda p, f: (p.putalpha(255), p.save(f)),
    "grey_alpha.png": lambda p, f: p.convert("LA").save(f),
    "palette.png": lambda p, f: p.convert("P").save(f),
    "bits.png": lambda p, f: p.convert("1").save(f),
    "cmyk.jpg": lambda p, f: p.convert("CMYK").save(f),
    "progressive.jpg": lambda p, f: p.save(f, progressive=True),
    "x.webp": lambda p, f: p.save(f),
    "x.gif": lambda p, f: p.save(f),
    "x.bmp": lambda p, f: p.save(f),
    "x.tiff": lambda p, f: p.save(f),
    "trailing.jpg": lambda p, f: (p.save(f), f.write_bytes(f.read_bytes() + b"\0" * 99)),
}


def test_every_kind_of_file_gives_rgb(tmp_path):
    files = [tmp_path / name for name in ODD]
    for number, (file, save) in enumerate(zip(files, ODD.values(), strict=True)):
        save(picture(number), file)
    (batch,) = source(files).batches([np.arange(len(files))])
    for file, row in zip(files, batch, strict=True):
        np.testing.assert_allclose(row, expected(file, **IMAGENET), rtol=0, atol=2e-6, err_msg=file.name)


def test_files_are_read_as_photographs_are(tmp_path):
    """Upright, on white, of 16 bits the upper eight: exact values in test_photographs.py."""
    make = ("turned.jpg", "alpha.webp", "grey16.png", "grey16.tiff", "palette.png", "cmyk.jpg")
    files = [tmp_path / name for name in make]
    for file in files:
        GOOD[file.name](file)
    images = source(files)
    (batch,) = images.batches([np.arange(len(files))])
    for file, row in zip(files, batch, strict=True):
        np.testing.assert_array_equal(row, images.preprocess(read_photograph(str(file)).pixels), err_msg=file.name)


def broken_table() -> bytes:
    """A JPEG file with good ends and a bad Huffman table."""
    out = io.BytesIO()
    picture(0).save(out, "JPEG")
    data = out.getvalue()
    place = data.index(b"\xff\xc4") + 5
    return data[:place] + b"\xff" * 16 + data[place + 16 :]


@pytest.mark.parametrize(
    "content,words",
    [
        (None, "missing"),
        (broken_table(), "truncated or broken"),
        (b"GIF89a?", "a GIF file that is broken"),
        (b"", "empty"),
    ],
    ids=["missing", "table", "gif", "empty"],
)
def test_a_bad_file_in_the_middle_is_named(files, content, words):
    files[13].unlink() if content is None else files[13].write_bytes(content)
    got = []
    with pytest.raises(InputError, match=rf"13\.png: ({words}).*restore the file"):
        got.extend(source(files).batches(np.arange(24).reshape(6, 4)))
    assert len(got) <= 3  # the batches before it may have come, no later one


def test_an_iterator_that_is_left_leaves_nothing(files):
    images = source(files)
    order = np.tile(np.arange(24), 4).reshape(-1, 4)
    next(iter(images.batches(order)))  # MindData starts threads of its own once
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        batches = images.batches(order)
        next(batches)
        batches.close()
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= before


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"mean": (123.0, 116.0, 103.0)}, r"mean=\[123.*scale=1 goes with"),
        ({"std": (0.0, 0.2, 0.2)}, r"std=\[0"),
        ({"std": (0.2,)}, "std"),
        ({"scale": 0.0}, "mean"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        source([], **settings)
