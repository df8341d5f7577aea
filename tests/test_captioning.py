"""Captioning photographs, what needs no model: the files that a command names, and the files of captions."""

import argparse
import json
import multiprocessing
import os
import tracemalloc
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from src.captioning.arguments import name_checkpoints, read_image_arguments
from src.captioning.captions import DecodedCaption
from src.captioning.collection import prepare, share
from src.captioning.inputs import Found, find_photographs, skipped_note
from src.captioning.output import CaptionFile, CaptionTable, DonePaths, printable
from src.data import digests, image_formats
from src.data.digests import state_key
from src.runtime.errors import InputError
from src.runtime.files import append_json_lines
from src.runtime.workers import Workers


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """A folder tree of empty files, and the working folder."""
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "deep/er/c.webp", "deep/a[1].gif", ".trash/d.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos/deep/back").symlink_to(tmp_path / "photos")  # a circle
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*items: str) -> list:
    return [one.path if one.reason is None else one for one in find_photographs(items)]


def test_folders_are_gone_through_in_order(collection):
    assert found("photos") == ["photos/a.png", "photos/b.JPG", "photos/deep/a[1].gif", "photos/deep/er/c.webp"]
    ((path, reason),) = found("empty")
    assert path == "empty" and reason.startswith("a folder without images (.jpg, ")


def test_files_patterns_and_missing_ones(collection):
    assert found("photos/notes.txt", "gone.jpg") == ["photos/notes.txt", "gone.jpg"]  # reading tells
    assert found("photos/*.[pJ]*") == ["photos/a.png", "photos/b.JPG"]
    assert found("photos/**/*.webp") == ["photos/deep/er/c.webp"]
    assert found("photos/**/*") == ["photos/a.png", "photos/b.JPG", *found("photos/deep"), "photos/notes.txt"]
    assert found("photos/**") == found("photos")  # each once, though ** matches every folder
    assert found("photos/deep/a[1].gif") == ["photos/deep/a[1].gif"]  # a name, not a pattern
    assert found("phot*") == found("photos")
    assert found(f"{collection}/photos/*.png") == [f"{collection}/photos/a.png"]
    assert found("photos/.trash/*") == ["photos/.trash/d.jpg"]
    with pytest.raises(InputError, match=r"--images photos/a\*\*: Invalid pattern"):
        found("photos/a**")
    assert found("*.jpg") == [Found("*.jpg", "matches no file")]


def test_lists(collection):
    lines = ["\ufeffphotos/a.png\r", "", "photos/deep/a[1].gif", " x", "gone *.jpg", "photos"]
    (collection / "list.txt").write_bytes("\n".join(lines).encode() + b"\n\xe9.jpg")
    want = ["photos/a.png", "photos/deep/a[1].gif", " x", "gone *.jpg", "photos", os.fsdecode(b"\xe9.jpg")]
    assert found("@list.txt") == want
    for bad, words in (("@none.txt", "none.txt: the list cannot be read"), ("@/dev/null", "not a regular file")):
        with pytest.raises(InputError, match=words):
            found(bad)


def test_a_long_list_is_not_held_in_memory(collection):
    with open("long.txt", "w") as file:
        file.writelines(f"photos/{number:09d}.jpg\n" for number in range(200_000))
    tracemalloc.start()
    assert sum(1 for _ in share(["@long.txt"], DonePaths([]), Workers())) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_workers_share_every_photograph_once(collection):
    with open("list.txt", "w") as file:
        file.writelines(f"{number}.jpg\n" for number in range(300))
    shares = [
        [one.path for one in share(["@list.txt"], DonePaths([("7.jpg", 1, 1)]), Workers(rank, 3))] for rank in range(3)
    ]
    assert sorted(chain(*shares)) == sorted(f"{number}.jpg" for number in range(300) if number != 7)
    assert min(map(len, shares)) > 70


@pytest.fixture
def checkpoints(collection):
    """Files that stand for checkpoints, in the working folder."""
    for path in ("runs/demo-ce/checkpoints/best", "runs/x/checkpoints/last", "p/best", "odd", "a"):
        (collection / path).parent.mkdir(parents=True, exist_ok=True)
        (collection / path).touch()
    return collection


def arguments(*, checkpoint=(), images=None, output=None, config="c.yaml"):
    return argparse.Namespace(
        checkpoint=[*checkpoint], images=images, output=output, config=config, overrides=["seed=2"]
    )


def test_settings_behind_the_flags_are_told_from_files(checkpoints):
    (checkpoints / "seed=4").touch()
    (checkpoints / "x.y=1").touch()
    images = ["a=b.jpg", "eval.beams=3", "seed=4", "x.y=1", "IMG=1.png", "evl.beams=3"]
    words = arguments(checkpoint=["CE=p/best", "seed=3"], images=images)
    named = read_image_arguments(words)
    assert list(named) == ["CE"] and str(named["CE"]) == "p/best"
    assert words.images == ["a=b.jpg", "seed=4", "x.y=1", "IMG=1.png"]
    assert words.overrides == ["seed=2", "seed=3", "eval.beams=3", "evl.beams=3"]


def test_an_exported_folder_brings_its_configuration(checkpoints):
    folder = checkpoints / "served"
    folder.mkdir()
    for name in ("model.safetensors", "config.yaml", "tokenizer.json"):
        (folder / name).touch()
    words = arguments(checkpoint=[str(folder), "A=a"], images=["x.jpg"], config=None)
    assert read_image_arguments(words, Path("default")) == {"served": folder / "model.safetensors", "A": Path("a")}
    assert words.config == folder / "config.yaml"
    words = arguments(checkpoint=["A=a"], images=["x.jpg"], config=None)
    read_image_arguments(words, Path("default"))
    assert words.config == Path("default")
    with pytest.raises(InputError, match="--config is missing"):
        read_image_arguments(arguments(checkpoint=["A=a"], images=["x.jpg"], config=None))


def test_names_of_checkpoints(checkpoints):
    named = name_checkpoints(["runs/demo-ce/checkpoints/best", "GRPO 2=runs/x/checkpoints/last", "odd"])
    assert {name: str(path) for name, path in named.items()} == {
        "demo-ce": "runs/demo-ce/checkpoints/best",
        "GRPO 2": "runs/x/checkpoints/last",
        "odd": "odd",
    }


@pytest.mark.parametrize(
    "words, message",
    [
        (["CE=a", "CE=p/best"], "a and p/best are both called CE; pass NAME=PATH"),
        (["a|b=a"], r"'a\|b' must be letters"),
        (["CE=gone"], "--checkpoint CE=gone: there is no file gone"),
        (["CE=a", "B="], "--checkpoint B=: there is no file behind ="),
    ],
)
def test_checkpoints_that_cannot_be_taken(checkpoints, words, message):
    with pytest.raises(InputError, match=message):
        name_checkpoints(words)


@pytest.mark.parametrize(
    "words, message",
    [
        (arguments(checkpoint=["A=a", "B=a"]), "several checkpoints are for --images"),
        (arguments(checkpoint=["A=a"], output="x.jsonl"), "--output is for --images"),
        (arguments(checkpoint=["A=a"], images=["eval.beams=3"]), "--images names no photograph"),
    ],
)
def test_flags_that_do_not_go_together(checkpoints, words, message):
    with pytest.raises(InputError, match=message):
        read_image_arguments(words)


CAPTIONS = {"CE": [DecodedCaption("greedy", "a dog", -1.5)], "GRPO": [DecodedCaption("greedy", "a brown dog", -2.25)]}
MADE_FROM = {"checkpoints": {"CE": "1"}, "eval": {"beams": 1}, "seed": 1}


@pytest.fixture
def file(tmp_path):
    opened = CaptionFile(tmp_path / "new/captions.jsonl")
    opened.open(MADE_FROM)
    return opened


def again(file: CaptionFile, made_from=MADE_FROM) -> CaptionFile:
    """The same file as the next run opens it."""
    if hasattr(file, "_lock"):
        file._lock.close()
    opened = CaptionFile(file.path)
    opened.open(made_from)
    return opened


def test_lines_hold_all_captions(file):
    odd = "two\nlines \udce9.png"
    file.write({"a.png": CAPTIONS, odd: CAPTIONS}, {"b\nad.jpg": "empty"}, {"a.png": (10, 11), odd: (2**64 - 1, 0)})
    first, second = map(json.loads, file.path.read_text("ascii").splitlines())
    assert first == {
        "image": "a.png",
        "captions": {
            "CE": [{"decoding": "greedy", "caption": "a dog", "logprob": -1.5}],
            "GRPO": [{"decoding": "greedy", "caption": "a brown dog", "logprob": -2.25}],
        },
        "file": ["000000000000000a", "000000000000000b"],
    }
    assert second["image"] == odd
    assert [json.loads(line) for line in file.bad.open()] == [{"image": "b\nad.jpg", "reason": "empty"}]
    done = again(file).done()
    keys = [done.key(name) for name in ("a.png", odd, "b\nad.jpg", "")]
    assert len(done) == 2 and keys == [10, 2**64 - 1, None, None]
    assert file.bad.read_bytes() == b""  # is tried again


@pytest.mark.parametrize("tail", [b'{"image": "b', b"x" * 200_000])
def test_a_torn_line_is_cut_off_when_the_file_is_opened_and_when_it_is_appended_to(file, tail):
    file.write({"a.png": CAPTIONS}, {}, {"a.png": (5, 0)})
    whole = file.path.read_bytes()
    for repair in (lambda: again(file), lambda: append_json_lines(file.path, [])):
        file.path.write_bytes(whole + tail)
        repair()
        assert file.path.read_bytes() == whole
    file.path.write_bytes(tail)
    assert len(again(file).done()) == 0 and file.path.read_bytes() == b""


def _append_many(path, name):
    for number in range(200):
        append_json_lines(path, [{"image": f"{name}-{number}", "text": "x" * 3000}] * 3)


def test_processes_append_whole_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    images = [json.loads(line)["image"] for line in path.open()]
    assert sorted(images) == sorted([f"{name}-{number}" for name in "abc" for number in range(200)] * 3)


def test_captions_of_other_settings_are_not_mixed(file):
    file.write({"a.png": CAPTIONS}, {}, {"a.png": (5, 0)})
    other = {**MADE_FROM, "eval": {"beams": 3}, "checkpoints": {"CE": "1", "GRPO": "2"}}
    with pytest.raises(InputError, match=r"made with other checkpoints\.GRPO, eval\.beams; pass another --output"):
        again(file, other)
    file.settings.write_text("")
    with pytest.raises(InputError, match="is missing or damaged: the settings of"):
        again(file)


def test_two_runs_do_not_write_one_file(file):
    with pytest.raises(InputError, match="another run is writing to it"):
        CaptionFile(file.path).open(MADE_FROM)


def test_a_line_that_is_none_of_captions_is_named(file):
    file.path.write_text('{"image": "a.png", "file": ["1", "2"]}\n{"imag": 1}\n')
    with pytest.raises(InputError, match="line 2 is damaged; remove it"):
        file.done()


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match=r"cannot write .*/x: .*; pass another --output"):
        CaptionFile(tmp_path / "x/captions.jsonl").open(MADE_FROM)


def test_a_million_digests():
    done = DonePaths((f"photos/{number}.jpg", number, 0) for number in range(100_000))
    assert done.key("photos/99999.jpg") == 99_999 and done.key("photos/100000.jpg") is None
    assert DonePaths([]).key("") is None and not DonePaths([]).is_settled("")
    assert done._rows.nbytes == 2_400_000 and len(done) == 100_000
    assert DonePaths([("a", 1, 0), ("b", 2, 0), ("a", 3, 0)]).key("a") == 3  # the last line counts


def test_only_a_file_in_its_old_state_is_settled(tmp_path, monkeypatch):
    """Another one is read: by its bytes it is captioned again, or not."""
    file = tmp_path / "x.jpg"
    file.write_bytes(b"1")
    assert state_key(file.stat()) == 0  # it may change again within one tick of the clock
    monkeypatch.setattr(digests, "_RACY", -(10**18))
    done = DonePaths([(str(file), 1, state_key(file.stat())), ("unsettled", 1, 0), ("gone", 1, 2)])
    (tmp_path / "unsettled").touch()
    monkeypatch.chdir(tmp_path)
    assert done.is_settled(str(file)) and done.is_settled("gone") and not done.is_settled("unsettled")
    before = file.stat()
    file.write_bytes(b"2")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not done.is_settled(str(file))


def test_a_photograph_that_was_replaced_is_captioned_again(tmp_path, monkeypatch):
    """By another of the same size; one with the bytes that it had is not, whatever its times."""
    monkeypatch.setattr(digests, "_RACY", -(10**18))

    class Model:
        def prepare(self, photograph):
            return photograph

    def looked_at(done) -> dict:
        rows = {one.path: prepare(Model(), done, *one) for one in share([str(tmp_path)], done, Workers())}
        return {os.path.basename(path): row and row[1] for path, row in rows.items()}

    for name in ("same.bmp", "touched.bmp", "replaced.bmp"):
        Image.new("RGB", (8, 8), "black").save(tmp_path / name)
    first = looked_at(DonePaths([]))
    assert len(first) == 3 and None not in first.values()
    done = DonePaths([(str(tmp_path / name), one.key, one.state) for name, one in first.items()])
    assert looked_at(done) == {}
    os.utime(tmp_path / "touched.bmp", (1, 1))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "replaced.bmp")
    again = looked_at(done)
    assert again.keys() == {"touched.bmp", "replaced.bmp"} and again["touched.bmp"] is None
    assert again["replaced.bmp"].pixels[0, 0].tolist() == [255, 0, 0]


def test_skipped_files_are_counted_by_format(collection, monkeypatch):
    monkeypatch.setattr(image_formats, "_is_installed", lambda format: False)
    for name in ("1.heic", "2.HEIC", "3.heic", "x.dng", "y.avif", "clip.mp4", "deep/README"):
        (collection / "photos" / name).touch()
    skipped: Counter[str] = Counter()
    assert [one.path for one in find_photographs(["photos"], skipped)] == found("photos")
    assert skipped_note(skipped) == (
        ", skipped 8 (3 .heic, 1 without suffix, 1 .avif, 1 .dng, 1 .mp4, 1 .txt): "
        ".heic needs pip install pillow-heif; .avif needs pip install 'pillow>=11.3'; "
        ".dng is a raw photograph: save it as JPEG"
    )
    monkeypatch.setattr(image_formats, "_is_installed", lambda format: True)
    skipped.clear()
    assert [one.path for one in find_photographs(["photos/"], skipped)][:3] == [
        f"photos/{name}" for name in ("1.heic", "2.HEIC", "3.heic")
    ]
    assert skipped_note(skipped).startswith(", skipped 4 (1 without suffix, 1 .dng")
    assert skipped_note(Counter()) == ""
    many = skipped_note(Counter({f".{number}": 1 for number in range(12)} | {".\n": 2}))
    assert many.startswith(", skipped 14 (2 .\\n, 1 .0, ") and many.endswith(", 5 more kinds)")


def test_the_table(capsys):
    table = CaptionTable(["CE", "GRPO"])
    two = {name: [*rows, DecodedCaption("sample", "a|b", -3.0)] for name, rows in CAPTIONS.items()}
    table.write({"a.png": two}, {}, {})
    table.write({}, {"x": "empty"}, {})
    table.write({"two\nlines": CAPTIONS}, {}, {})
    assert capsys.readouterr().out.splitlines() == [
        "| photograph | decoding | CE           | GRPO               |",
        "| ---------- | -------- | ------------ | ------------------ |",
        "| a.png      | greedy   | a dog (-1.5) | a brown dog (-2.2) |",
        "|            | sample   | a\\|b (-3.0)  | a\\|b (-3.0)        |",
        "| two\\nlines | greedy   | a dog (-1.5) | a brown dog (-2.2) |",
    ]
    assert printable("naïve 写真\x1b[31m\udce9\u2028\x85") == "naïve 写真\\x1b[31m\\udce9\\u2028\\x85"
    for name in ("9.41.12\u202fAM.jpg", "a\u00a0b", "\U0001f468\u200d\U0001f469"):  # to be copied from the screen
        assert printable(name) == name
