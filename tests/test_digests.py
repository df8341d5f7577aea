"""The memory of digests: what is read again, and what is not."""

import hashlib
import os
import threading

import numpy as np
import pytest

from src.data import digests
from src.data.digests import content_digests
from src.runtime.errors import InputError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Five files that may be remembered at once."""
    monkeypatch.setattr(digests, "_RACY", -(10**18))
    paths = [tmp_path / f"{number}.bin" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 3_000_000)
    return paths


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read."""
    names = []
    read_one = digests._read
    monkeypatch.setattr(digests, "_read", lambda path: (names.append(os.path.basename(path)), read_one(path))[1])
    return names


def want(files) -> list[bytes]:
    return [hashlib.sha256(file.read_bytes()).digest() for file in files]


def got(files, memory) -> list[bytes]:
    rows = content_digests(files, memory)
    assert rows.shape == (len(files), 32) and rows.dtype == np.uint8
    return [row.tobytes() for row in rows]


def test_every_file_is_read_once(files, read, tmp_path):
    assert got(files, tmp_path / "memory") == want(files)
    assert sorted(read) == [f"{number}.bin" for number in range(5)]
    assert got(files, tmp_path / "memory") == want(files) and len(read) == 5
    assert got(files[::-1], tmp_path / "memory") == want(files[::-1])  # another list has another memory
    assert got([], tmp_path / "memory") == []


def same_size(file):
    file.write_bytes(b"x" * file.stat().st_size)


def same_size_and_time(file):
    before = file.stat()
    same_size(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file):
    """As an editor saves: another file takes the name."""
    other = file.with_name("other")
    other.write_bytes(b"y" * file.stat().st_size)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.rename(file)


def link(file):
    """To another file of the same size."""
    other = file.with_name("target")
    other.write_bytes(b"z" * file.stat().st_size)
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [same_size, same_size_and_time, replaced, link])
def test_a_file_that_has_changed_is_read_again(files, read, tmp_path, change):
    got(files, tmp_path / "memory")
    read.clear()
    change(files[3])
    assert got(files, tmp_path / "memory") == want(files)
    assert read == ["3.bin"]


def test_a_file_that_was_read_just_after_a_change_is_not_trusted(files, read, tmp_path, monkeypatch):
    """It may change again and keep size and times: times are no finer than a clock tick, or two seconds."""
    monkeypatch.setattr(digests, "_RACY", 10**9)
    monkeypatch.setattr(digests.time, "time_ns", lambda: files[0].stat().st_mtime_ns + 5 * 10**8)
    assert got(files[:1], tmp_path / "memory") == want(files[:1])
    assert got(files[:1], tmp_path / "memory") == want(files[:1]) and len(read) == 2
    monkeypatch.setattr(digests.time, "time_ns", lambda: files[0].stat().st_mtime_ns + 2 * 10**9)
    got(files[:1], tmp_path / "memory")
    got(files[:1], tmp_path / "memory")
    assert len(read) == 3


@pytest.mark.parametrize("spoil", [b"", b"junk", lambda data: data[:-1], lambda data: data[:50] + b"\0" + data[51:]])
def test_a_damaged_memory_costs_a_reading(files, read, tmp_path, spoil):
    got(files, tmp_path / "memory")
    (store,) = (tmp_path / "memory").iterdir()
    store.write_bytes(spoil if isinstance(spoil, bytes) else spoil(store.read_bytes()))
    read.clear()
    assert got(files, tmp_path / "memory") == want(files) and len(read) == 5
    assert got(files, tmp_path / "memory") == want(files) and len(read) == 5


def test_a_memory_that_cannot_be_written_is_no_error(files, tmp_path):
    (tmp_path / "file").touch()
    assert got(files, tmp_path / "file") == want(files)


def test_an_interrupted_reading_is_remembered_as_far_as_it_came(files, read, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(digests, "_THREADS", 1)
        read_one = digests._read

        def stop(path):
            if path.endswith("4.bin"):
                raise KeyboardInterrupt
            return read_one(path)

        context.setattr(digests, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            got(files, tmp_path / "memory")
    read.clear()
    assert got(files, tmp_path / "memory") == want(files) and read == ["4.bin"]


def test_programs_at_the_same_time_leave_a_whole_memory(files, read, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(got(files, tmp_path / "memory"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [want(files)] * 8
    read.clear()
    assert got(files, tmp_path / "memory") == want(files) and read == []
    assert len(list((tmp_path / "memory").iterdir())) == 1


def test_a_file_that_cannot_be_read_is_named(files, tmp_path):
    files[2].unlink()
    with pytest.raises(InputError, match=r"2\.bin: cannot be read \(No such file or directory\); restore the file"):
        content_digests(files, tmp_path)
