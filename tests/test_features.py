"""The feature cache with an encoder of NumPy that counts its calls, filled by one worker or by several threads."""

import os
import resource
import shutil
import threading
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from src.config.kinds import Preprocessing
from src.data import feature_cache, feature_source
from src.data.digests import content_digests
from src.data.feature_cache import FeatureCache
from src.data.feature_source import FeatureSource, check_space, feature_path, load_features
from src.data.image_files import ImageFiles
from src.data.images import ImageSource
from src.runtime.errors import InputError
from src.runtime.workers import Workers

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


class Threads(Workers):
    """Workers that are threads of this process: `size` of them share one Barrier."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, flags: list[bool]) -> None:
        super().__init__(rank, size)
        self._barrier, self._flags = barrier, flags

    def any(self, flag: bool) -> bool:
        self._flags[self.rank] = flag
        self._barrier.wait(60)
        answer = any(self._flags)
        self._barrier.wait(60)
        return answer

    def wait(self) -> None:
        self._barrier.wait(60)


def threads(size: int) -> list[Workers]:
    barrier, flags = threading.Barrier(size), [False] * size
    return [Threads(rank, size, barrier, flags) for rank in range(size)]


def plan(folder, files, key=None, channels=CHANNELS, batch=BATCH) -> FeatureCache:
    digests = content_digests(files, folder / "memory")
    path = feature_path(folder, key or {"weights": "a"}, digests)
    return FeatureCache(path, tuple(files), digests.tobytes(), (len(files), TOKENS, channels), batch)


def source_of(files) -> ImageSource:
    return ImageSource(ImageFiles(files), 8, Preprocessing(1 / 255, mean=(0, 0, 0), std=(1, 1, 1)), workers=1)


def build(folder, files, encode, key=None, workers=None, **sizes) -> FeatureSource:
    workers = workers or Workers()
    source = source_of(files)
    folder.mkdir(exist_ok=True)
    cache = plan(folder, files, key, **sizes)
    return load_features(cache, lambda c: c.fill(source.batches, encode, workers.rank, workers.size), workers)


def build_together(folder, files, encoders) -> list[FeatureSource]:
    """One worker for each encoder, at the same time; the first error of any is raised."""
    with ThreadPoolExecutor(len(encoders)) as pool:
        started = [
            pool.submit(build, folder, files, encode, workers=workers)
            for encode, workers in zip(encoders, threads(len(encoders)))
        ]
        return [one.result() for one in started]


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
    assert sorted(p.suffix for p in (tmp_path / "cache").glob("f*")) == [".lock", ".npy"]


def test_the_second_time_it_is_read(tmp_path, files):
    first = build(tmp_path, files, Encoder())
    encode = Encoder()
    again = build(tmp_path, files, encode)
    assert encode.calls == 0 and again.path == first.path


def test_key_and_bytes_name_the_cache_and_no_paths(tmp_path, files):
    first = build(tmp_path / "c", files, Encoder()).path
    paths = {first, build(tmp_path / "c", files, Encoder(), key={"weights": "b"}).path}
    paths.add(build(tmp_path / "c", files[::-1], Encoder()).path)
    shutil.copytree(files[0].parent, tmp_path / "a" / "other disk", ignore=shutil.ignore_patterns("a", "c"))
    moved = Encoder()
    assert build(tmp_path / "c", [tmp_path / "a/other disk" / file.name for file in files], moved).path == first
    assert moved.calls == 0  # read once, not encoded
    files[2].write_bytes(files[2].read_bytes() + b"\0")
    paths.add(build(tmp_path / "c", files, Encoder()).path)
    assert len(paths) == 4
    key = {"a": "1", "b": "2"}
    here = build(tmp_path / "c", files, Encoder(), key=key).path
    assert here == build(tmp_path / "c", files, Encoder(), key=dict(reversed(key.items()))).path


def test_another_picture_of_the_same_name_and_size_is_encoded(tmp_path):
    """Uncompressed files have equal sizes; the time of the last change may be put back too."""
    files = [tmp_path / "set/images/0000.bmp"]
    files[0].parent.mkdir(parents=True)
    rows = []
    for colour in ("black", "red"):
        Image.new("RGB", (8, 8), colour).save(files[0])
        os.utime(files[0], (1e9, 1e9))
        encode = Encoder()
        rows.append(next(build(tmp_path / "cache", files, encode, batch=BATCH).batches([np.array([0])])))
        assert encode.calls == 1
    np.testing.assert_array_equal(rows[0], np.zeros((1, TOKENS, CHANNELS)))
    np.testing.assert_array_equal(rows[1], np.broadcast_to([1.0, 0, 0], (1, TOKENS, CHANNELS)))


def marked(folder) -> list[int]:
    """The rows that an interrupted run has marked as computed."""
    (done,) = folder.glob("*.done")
    return np.flatnonzero(np.fromfile(done, np.uint8)).tolist()


def test_interruption_keeps_what_was_computed(tmp_path, files):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    assert not list(tmp_path.glob("*.npy"))
    assert marked(tmp_path) == list(range(8))
    encode = Encoder()
    cache = build(tmp_path, files, encode)
    assert encode.calls == 1
    (rows,) = cache.batches([np.arange(IMAGES)])
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_another_number_of_workers_goes_on(tmp_path, files, before, after):
    """One batch of two images per call; each worker is interrupted in its second."""
    calls = Counter()

    class Counting(Encoder):
        def __call__(self, images):
            out = super().__call__(images.repeat(2, 0))[::2]
            calls.update(pixels.tobytes() for pixels in images)  # not where the call was interrupted
            return out

    for rank in range(before):
        cache = plan(tmp_path, files, batch=2)
        cache.prepare()
        source = source_of(files)
        with pytest.raises(KeyboardInterrupt):
            cache.fill(source.batches, Counting(stop_at=2), rank, before)
    assert marked(tmp_path) == list(range(2 * before))
    for rank in range(after):
        cache.prepare()
        cache.fill(source.batches, Counting(), rank, after)
    cache.finish()
    calls.subtract([next(reversed(calls))])  # the last batch repeats its only image
    assert sorted(calls.values()) == [1] * IMAGES
    (rows,) = FeatureSource(cache.path).batches([np.arange(IMAGES)])
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


def test_two_workers_share_the_batches_and_write_the_same_file(tmp_path, files):
    alone = build(tmp_path / "one", files, Encoder())
    encoders = [Encoder(), Encoder()]
    for cache in build_together(tmp_path / "two", files, encoders):
        assert cache.path.read_bytes() == alone.path.read_bytes()
    assert [encode.calls for encode in encoders] == [2, 1]
    again = [Encoder(), Encoder()]
    build_together(tmp_path / "two", files, again)
    assert [encode.calls for encode in again] == [0, 0]


def test_a_kill_between_rows_and_their_mark(tmp_path, files):
    """After kill -9 rows may be there, whole or half, without a mark: they are computed again, never trusted."""
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    (part,) = tmp_path.glob("*.part")
    rows = np.load(part, mmap_mode="r+")
    rows[8:10] = 77.0
    rows.flush()
    (kept,) = build(tmp_path, files, Encoder()).batches([np.arange(IMAGES)])
    np.testing.assert_allclose(kept, expected(files), atol=5e-4)


def test_rows_are_marked_after_they_are_written(tmp_path, files, monkeypatch):
    written = []
    write = feature_cache._write
    monkeypatch.setattr(feature_cache, "_write", lambda file, *rest: (written.append(file.name), write(file, *rest)))
    build(tmp_path, files, Encoder())
    assert [name.rpartition(".")[2] for name in written] == ["part", "done"] * 3


def test_rows_that_no_worker_computed_are_noticed(tmp_path, files):
    cache = plan(tmp_path, files)
    cache.prepare()
    with pytest.raises(InputError, match=r"part: 11 rows are missing; check that all workers share one file system"):
        cache.finish()


@pytest.mark.parametrize("spoil", ["done", "part", "shape"])
def test_a_spoiled_rest_is_not_used(tmp_path, files, spoil):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, files, Encoder(stop_at=3))
    (done,), (part,) = tmp_path.glob("*.done"), tmp_path.glob("*.part")
    if spoil == "done":
        done.write_bytes(b"\1" * 10)
    elif spoil == "part":
        part.write_bytes(b"\x93NUMPY")
    else:
        with open(part, "wb") as file:
            np.save(file, np.zeros((IMAGES, 1, 1), np.float16))
    encode = Encoder()
    (rows,) = build(tmp_path, files, encode).batches([np.arange(IMAGES)])
    assert encode.calls == 3
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


def set_free(monkeypatch, bytes_free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, bytes_free))


def test_all_caches_together_must_fit(tmp_path, monkeypatch):
    """COCO's splits at 224 x 224: 196 tokens x 2048 channels x 2 bytes x 123,287 images = 98.98 GB."""
    sizes = {"train": 113_287, "val": 5_000, "test": 5_000}
    caches = [
        FeatureCache(tmp_path / "new" / f"{split}.npy", (tmp_path,) * images, b"", (images, 196, 2048), 32)
        for split, images in sizes.items()
    ]
    set_free(monkeypatch, 98_970_000_000)
    with pytest.raises(InputError, match=r"new: the features of 123,287 images need 99.0 GB more, 99.0 GB are free"):
        check_space(caches)
    assert list((tmp_path / "new").iterdir()) == []
    set_free(monkeypatch, 98_980_000_000)
    check_space(caches)


def test_what_is_there_needs_no_space(tmp_path, files, monkeypatch):
    done, begun = plan(tmp_path, files), plan(tmp_path, files[:4], channels=4096)
    build(tmp_path, files, Encoder())
    set_free(monkeypatch, 2 * 4 * TOKENS * 4096 - 1)
    with pytest.raises(InputError, match=r"need 0\.0 GB"):
        check_space([done, begun])
    begun.prepare()
    assert begun.part.stat().st_blocks * 512 >= begun.part.stat().st_size  # reserved, or the file system cannot
    set_free(monkeypatch, 0)
    check_space([done, begun])


def test_a_disk_that_fills_up_is_an_error_and_what_was_computed_is_kept(tmp_path, files):
    """A real limit, of the size of a file: the header, the first batch and 10 bytes of the second."""
    plan(tmp_path, files).prepare()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 2 * BATCH * TOKENS * CHANNELS + 10, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"cannot write {tmp_path}: File too large.*; free disk space"):
            build(tmp_path, files, Encoder())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert marked(tmp_path) == [0, 1, 2, 3]
    (rows,) = build(tmp_path, files, Encoder()).batches([np.arange(IMAGES)])
    np.testing.assert_allclose(rows, expected(files), atol=5e-4)


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
    with pytest.raises(InputError, match=r"cannot write .*/file: "):
        check_space([plan(tmp_path / "file", files)])
    files[4].unlink()
    with pytest.raises(InputError, match=r"4\.png: cannot be read"):
        plan(tmp_path, files)


def test_a_second_run_waits_for_the_first(tmp_path, files, capfd, monkeypatch):
    monkeypatch.setattr(feature_source, "_WAIT", 0.05)
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
