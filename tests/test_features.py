"""The feature cache with an encoder of NumPy that counts its calls."""

import json
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from src.data import features
from src.data.features import FeatureSource, build_feature_cache
from src.data.images import ImageSource
from src.errors import InputError

IMAGES, BATCH, TOKENS, CHANNELS = 11, 4, 4, 3


class Encoder:
    """Mean colour of each quarter of the picture, [B,4,3]; raises in call number `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.shape == (BATCH, 3, 8, 8)
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return images.reshape(BATCH, 3, 2, 4, 2, 4).mean((3, 5)).reshape(BATCH, 3, 4).transpose(0, 2, 1)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(IMAGES)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


def build(folder, files, encode, key=None, **sizes) -> FeatureSource:
    source = ImageSource(files, image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1 / 255, workers=1)
    sizes = {"tokens": TOKENS, "channels": CHANNELS, "batch": BATCH, **sizes}
    return build_feature_cache(folder, key=key or {"weights": "a"}, files=files, source=source, encode=encode, **sizes)


def expected(files) -> np.ndarray:
    pixels = np.stack([np.asarray(Image.open(file), np.float64) for file in files]) / 255  # [n,8,8,3]
    return pixels.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).reshape(-1, TOKENS, CHANNELS)


def test_rows_belong_to_their_files(tmp_path, files):
    encode = Encoder()
    cache = build(tmp_path / "cache", files, encode)
    assert encode.calls == 3  # 4 + 4 + 3
    assert cache.shape == (IMAGES, TOKENS, CHANNELS)
    order = np.array([[10, 0, 3], [3, 9, 5]])
    got = list(cache.batches(order))
    assert [(batch.shape, batch.dtype) for batch in got] == [((3, TOKENS, CHANNELS), np.float16)] * 2
    np.testing.assert_allclose(np.stack(got), expected(files)[order], atol=5e-4)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".lock", ".npy"]


def test_the_second_time_it_is_read(tmp_path, files):
    first = build(tmp_path, files, Encoder())
    encode = Encoder()
    again = build(tmp_path, files, encode)
    assert encode.calls == 0 and again.path == first.path


def test_key_files_and_sizes_name_the_cache(tmp_path, files):
    paths = {build(tmp_path / "c", files, Encoder()).path}
    paths.add(build(tmp_path / "c", files, Encoder(), key={"weights": "b"}).path)
    paths.add(build(tmp_path / "c", files[::-1], Encoder()).path)
    files[2].write_bytes(files[2].read_bytes() + b"\0")
    paths.add(build(tmp_path / "c", files, Encoder()).path)
    assert len(paths) == 4
    shutil.copytree(files[0].parent, tmp_path / "moved" / files[0].parent.name)
    key = {"a": "1", "b": "2"}
    here = build(tmp_path / "c", files, Encoder(), key=key).path
    assert here == build(tmp_path / "c", files, Encoder(), key=dict(reversed(key.items()))).path


def test_interruption_keeps_what_was_computed(tmp_path, files):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    assert not list(tmp_path.glob("*.npy"))
    (record,) = tmp_path.glob("features-*.json")
    assert json.loads(record.read_text())["rows"] == 8
    encode = Encoder()
    cache = build(tmp_path, files, encode)
    assert encode.calls == 1
    (rows,) = cache.batches([np.arange(IMAGES)])
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


def test_kill_between_records(tmp_path, files, monkeypatch):
    """After kill -9 the record is older than the rows: they are computed again, never trusted."""
    monkeypatch.setattr(features, "_FLUSH_BATCHES", 1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    (record,) = tmp_path.glob("features-*.json")
    record.write_text(json.dumps({"rows": 4}))
    encode = Encoder()
    build(tmp_path, files, encode)
    assert encode.calls == 2


@pytest.mark.parametrize("spoil", ["record", "part", "shape"])
def test_a_spoiled_rest_is_not_used(tmp_path, files, spoil):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    (record,), (part,) = tmp_path.glob("features-*.json"), tmp_path.glob("*.part")
    if spoil == "record":
        record.write_text('{"rows"')
    elif spoil == "part":
        part.write_bytes(b"\x93NUMPY")
    else:
        with open(part, "wb") as file:
            np.save(file, np.zeros((IMAGES, 1, 1), np.float16))
    encode = Encoder()
    (rows,) = build(tmp_path, files, encode).batches([np.arange(IMAGES)])
    assert encode.calls == 3
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


def test_full_disk_is_refused_before_work(tmp_path, files, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    encode = Encoder()
    with pytest.raises(InputError, match=rf"{tmp_path}: 4,360 bytes are needed .* 11 images, 100 are free; make room"):
        build(tmp_path, files, encode)  # 11 * 4 * 3 * 2 + 4096
    assert encode.calls == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -70000.0])
def test_values_that_float16_cannot_hold_are_refused(tmp_path, files, value):
    def encode(images):
        out = np.zeros((BATCH, TOKENS, CHANNELS), np.float32)
        out[2, 1, 1] = value
        return out

    with pytest.raises(InputError, match=r"2\.png: its features are not finite or above 65504"):
        build(tmp_path, files, encode)


def test_what_is_not_a_feature_file_is_named(tmp_path, files):
    path = build(tmp_path, files, Encoder()).path
    for content in (b"", b"junk" * 100, path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path.name}: not a feature file .*delete it"):
            build(tmp_path, files, Encoder())
    np.save(path, np.zeros((2, TOKENS, CHANNELS), np.float16))
    with pytest.raises(InputError, match=r"holds \(2, 4, 3\) instead of \(11, 4, 3\)"):
        build(tmp_path, files, Encoder())


def test_bad_folder_and_missing_image(tmp_path, files):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"):
        build(tmp_path / "file", files, Encoder())
    files[4].unlink()
    with pytest.raises(InputError, match=r"4\.png: cannot be read"):
        build(tmp_path, files, Encoder())


def test_a_second_run_waits_for_the_first(tmp_path, files, capfd):
    started, go_on = threading.Event(), threading.Event()
    slow, fast = Encoder(), Encoder()

    def encode(images):
        started.set()
        go_on.wait(30)
        return slow(images)

    first = threading.Thread(target=build, args=(tmp_path, files, encode))
    second = threading.Thread(target=build, args=(tmp_path, files, fast))
    first.start()
    started.wait(30)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert (slow.calls, fast.calls) == (3, 0)
    assert "waiting for the process" in capfd.readouterr().err
