"""Captioning photographs, what needs no model: the files that a command names, and the files of captions."""

import argparse
import json
import multiprocessing
import os
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest

from src.captioning.arguments import name_checkpoints, read_image_arguments
from src.captioning.captions import Caption
from src.captioning.inputs import Found, find_photographs
from src.captioning.output import CaptionFile, DonePaths, append_lines
from src.captioning.run import share
from src.captioning.table import Table, one_line
from src.errors import InputError
from src.workers import Workers


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
    shares = [[one.path for one in share(["@list.txt"], DonePaths(["7.jpg"]), Workers(rank, 3))] for rank in range(3)]
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
    "words, mend",
    [
        (["CE=a", "CE=p/best"], "a and p/best are both called CE; give NAME=PATH"),
        (["a|b=a"], r"'a\|b' must be letters"),
        (["CE=gone"], "--checkpoint CE=gone: there is no file gone"),
        (["CE=a", "B="], "--checkpoint B=: there is no file behind ="),
    ],
)
def test_checkpoints_that_cannot_be_taken(checkpoints, words, mend):
    with pytest.raises(InputError, match=mend):
        name_checkpoints(words)


@pytest.mark.parametrize(
    "words, mend",
    [
        (arguments(checkpoint=["A=a", "B=a"]), "several checkpoints are for --images"),
        (arguments(checkpoint=["A=a"], output="x.jsonl"), "--output is for --images"),
        (arguments(checkpoint=["A=a"], images=["eval.beams=3"]), "--images names no photograph"),
    ],
)
def test_flags_that_do_not_go_together(checkpoints, words, mend):
    with pytest.raises(InputError, match=mend):
        read_image_arguments(words)


CAPTIONS = {"CE": [Caption("greedy", "a dog", -1.5)], "GRPO": [Caption("greedy", "a brown dog", -2.25)]}
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
    file.write({"a.png": CAPTIONS, odd: CAPTIONS}, {"b\nad.jpg": "empty"})
    first, second = map(json.loads, file.path.read_text("ascii").splitlines())
    assert first == {
        "image": "a.png",
        "captions": {
            "CE": [{"decoding": "greedy", "caption": "a dog", "logprob": -1.5}],
            "GRPO": [{"decoding": "greedy", "caption": "a brown dog", "logprob": -2.25}],
        },
    }
    assert second["image"] == odd
    assert [json.loads(line) for line in file.bad.open()] == [{"image": "b\nad.jpg", "reason": "empty"}]
    done = again(file).done()
    assert len(done) == 2 and "a.png" in done and odd in done and "b\nad.jpg" not in done and "" not in done
    assert file.bad.read_bytes() == b""  # is tried again


@pytest.mark.parametrize("tail", [b'{"image": "b', b"x" * 200_000])
def test_a_torn_line_is_cut_off_when_the_file_is_opened_and_when_it_is_appended_to(file, tail):
    file.write({"a.png": CAPTIONS}, {})
    whole = file.path.read_bytes()
    for repair in (lambda: again(file), lambda: append_lines(file.path, [])):
        file.path.write_bytes(whole + tail)
        repair()
        assert file.path.read_bytes() == whole
    file.path.write_bytes(tail)
    assert len(again(file).done()) == 0 and file.path.read_bytes() == b""


def _append_many(path, name):
    for number in range(200):
        append_lines(path, [{"image": f"{name}-{number}", "text": "x" * 3000}] * 3)


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
    file.write({"a.png": CAPTIONS}, {})
    other = {**MADE_FROM, "eval": {"beams": 3}, "checkpoints": {"CE": "1", "GRPO": "2"}}
    with pytest.raises(InputError, match=r"made with other checkpoints\.GRPO, eval\.beams; give another --output"):
        again(file, other)
    file.settings.write_text("")
    with pytest.raises(InputError, match="which says what it was made with, is not"):
        again(file)


def test_two_runs_do_not_write_one_file(file):
    with pytest.raises(InputError, match="another run writes it"):
        CaptionFile(file.path).open(MADE_FROM)


def test_a_line_that_is_none_of_captions_is_named(file):
    file.path.write_text('{"image": "a.png"}\n{"imag": 1}\n')
    with pytest.raises(InputError, match="line 2 is no line of captions"):
        file.done()


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match=r"cannot write .*/x: .*; give another --output"):
        CaptionFile(tmp_path / "x/captions.jsonl").open(MADE_FROM)


def test_a_million_digests():
    done = DonePaths(f"photos/{number}.jpg" for number in range(100_000))
    assert "photos/99999.jpg" in done and "photos/100000.jpg" not in done and "" not in DonePaths([])
    assert done._digests.nbytes == 800_000


def test_the_table(capsys):
    table = Table(["CE", "GRPO"])
    two = {name: [*rows, Caption("sample", "a|b", -3.0)] for name, rows in CAPTIONS.items()}
    table.write({"a.png": two}, {})
    table.write({}, {"x": "empty"})
    table.write({"two\nlines": CAPTIONS}, {})
    assert capsys.readouterr().out.splitlines() == [
        "| photograph | decoding | CE           | GRPO               |",
        "| ---------- | -------- | ------------ | ------------------ |",
        "| a.png      | greedy   | a dog (-1.5) | a brown dog (-2.2) |",
        "|            | sample   | a\\|b (-3.0)  | a\\|b (-3.0)        |",
        "| two\\nlines | greedy   | a dog (-1.5) | a brown dog (-2.2) |",
    ]
    assert one_line("naïve 写真\x1b[31m\udce9\u2028\x85") == "naïve 写真\\x1b[31m\\udce9\\u2028\\x85"
    for name in ("9.41.12\u202fAM.jpg", "a\u00a0b", "\U0001f468\u200d\U0001f469"):  # to be copied from the screen
        assert one_line(name) == name
