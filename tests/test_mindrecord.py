"""Images in MindRecord shards against the files that they were written from."""

import gc
import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
from tiny import TINY, run, tiny_data

from src.commands import prepare_mindrecord as mindrecord
from src.commands.check import broken_image
from src.commands.prepare_mindrecord import write_splits
from src.config.load import load_config
from src.data.dataset import build_image_source
from src.data.image_files import ImageFiles
from src.data.locate import find_images, read_records
from src.data.shards import ShardImages, Shards
from src.evaluation.gallery import thumbnails
from src.models.encoders.build import build_encoder
from src.runtime.errors import InputError
from src.runtime.workers import Workers
from src.training.panel import Panel
from src.training.sources import build_sources


def settings(root, *more):
    return load_config("configs/demo/grpo.yaml", [*TINY, f"data.root={root}", f"output_root={root}/outputs", *more])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A copy of the tiny scenes with their shards, three for each split."""
    root = tmp_path_factory.mktemp("data") / "demo"
    shutil.copytree(tiny_data(), root)
    records, _ = read_records(settings(root))
    write_splits(root / "mindrecord", root, records, shards=3, threads=2, memory=root / "memory")
    return root


@pytest.fixture
def root(written, tmp_path):
    """One to spoil."""
    shutil.copytree(written, tmp_path / "demo")
    return tmp_path / "demo"


def images_of(root, *more):
    """The training images of a configuration."""
    config = settings(root, *more)
    return find_images(config, [record.file for record in read_records(config)[0]["train"]])


def test_pixels_are_those_of_the_files_in_any_order(written):
    config = settings(written)
    order = np.append(np.random.default_rng(0).permutation(64), [5, 5, 63, 0]).reshape(-1, 4)
    from_files = build_image_source(config, images_of(written)).batches(order)
    from_shards = build_image_source(config, images_of(written, "data.mindrecord=mindrecord")).batches(order)
    for ours, theirs in zip(from_shards, from_files, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bytes_are_those_of_the_files(written):
    images = images_of(written, "data.mindrecord=mindrecord")
    assert isinstance(images, ShardImages)
    order = [63, 0, 7, 7]
    got = [(file, load()) for file, load in images.stream(order)]
    assert got == [(images.files[index], images.files[index].read_bytes()) for index in order]


def test_the_images_of_a_report_are_those_of_the_files(written):
    config = settings(written)
    records = read_records(config)[0]["test"][5:2:-1]
    shards = settings(written, "data.mindrecord=mindrecord")
    assert thumbnails(shards, records) == thumbnails(config, records) and len(records) == 3


def test_the_panel_of_a_run_shows_images_of_shards(written):
    records = read_records(settings(written))[0]["train"]
    sources = (images_of(written, "data.mindrecord=mindrecord"), images_of(written))
    from_shards, from_files = (Panel(records, images).draw(["a caption"] * 64)[0] for images in sources)
    assert from_shards == from_files and len(from_files) == 8


def test_the_files_are_not_needed_any_more(root):
    """Records, features and their cache file are the same without a single image file."""
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64).set_train(False)
    records, _ = read_records(settings(root))
    (before,) = build_sources(settings(root), records, ["val"], encoder, Workers())
    shutil.rmtree(root / "images")
    config = settings(root, "data.mindrecord=mindrecord", f"output_root={root}/anew")
    assert read_records(config) == (records, [])
    (after,) = build_sources(config, records, ["val"], encoder, Workers())
    assert after.path.name == before.path.name and after.path.read_bytes() == before.path.read_bytes()


def test_an_image_is_found_in_whatever_split(written):
    files = [record.file for split in ("test", "train") for record in read_records(settings(written))[0][split]]
    shards = Shards(written / "mindrecord", written)
    assert shards.scan([*files, written / "images/other.png"]) == {
        written / "images/other.png": f"not in {written}/mindrecord"
    }
    pick = [17, 0, 79]
    assert [load() for _, load in ShardImages(files, shards).stream(pick)] == [files[i].read_bytes() for i in pick]
    memory = written / "memory"
    np.testing.assert_array_equal(ShardImages(files, shards).digests(memory), ImageFiles(files).digests(memory))


@pytest.mark.parametrize("suffix", ["", ".db"])
def test_a_missing_or_cut_file_is_named(root, suffix):
    shard = root / f"mindrecord/train/train.mindrecord1{suffix}"
    whole = shard.stat().st_size
    os.truncate(shard, 1000)
    with pytest.raises(InputError, match=rf"{shard}: has 1,000 bytes, not {whole:,}; restore it, or rewrite it"):
        images_of(root, "data.mindrecord=mindrecord")
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard}: missing; restore it, or rewrite it"):
        images_of(root, "data.mindrecord=mindrecord")


def test_changed_bytes_are_noticed(root):
    """Of an image that is still one: MindRecord reads on."""
    images = images_of(root, "data.mindrecord=mindrecord")
    data = images.files[40].read_bytes()
    shards = [shard for shard in (root / "mindrecord/train").iterdir() if data in shard.read_bytes()]
    place = shards[0].read_bytes().index(data)
    with open(shards[0], "r+b") as file:
        file.seek(place + len(data) // 2)
        file.write(b"\0\1\2\3")
    source = build_image_source(settings(root), images)
    assert len(list(source.batches([np.arange(8)]))) == 1
    with pytest.raises(InputError, match=rf"{shards[0]}: damaged at .*{images.files[40].name}; rewrite it"):
        list(source.batches(np.arange(64).reshape(8, 8)))
    reasons = [broken_image(file, load) for file, load in images.stream(range(64))]
    assert [reason is not None for reason in reasons] == [index == 40 for index in range(64)]
    assert f"{images.files[40]}: {shards[0]}: damaged" in reasons[40]


def test_features_are_not_those_of_shards_that_were_replaced(root):
    """By shards of the same names and sizes with other pixels, while their features are cached."""
    config = settings(root, "data.mindrecord=mindrecord")
    records, _ = read_records(config)
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64).set_train(False)
    (before,) = build_sources(config, records, ["val"], encoder, Workers())
    assert build_sources(config, records, ["val"], encoder, Workers())[0].path == before.path
    (shard, *_) = sorted((root / "mindrecord/val").glob("*.mindrecord0"))
    data = bytearray(shard.read_bytes())
    place = data.index(b"IEND") - 20
    data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=f"{shard}: has changed since it was written; restore it, or rewrite it"):
        build_sources(config, records, ["val"], encoder, Workers())


def test_a_listing_without_digests_says_what_to_do(root):
    path = root / "mindrecord/train/listing.json"
    tree = json.loads(path.read_text())
    tree["files"] = {name: size for name, (size, _) in tree["files"].items()}
    tree["shards"] = {name: [[file, 100, 7] for file, _ in rows] for name, rows in tree["shards"].items()}
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=f"{path}: was written by an older version, .*; rewrite it with scripts"):
        images_of(root, "data.mindrecord=mindrecord")


def test_images_of_the_same_names_and_sizes_are_written_again(root, capsys):
    records, _ = read_records(settings(root))
    file, other = records["val"][0].file, records["val"][1].file
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # a bit of the last checksum
    write_splits(root / "mindrecord", root, {"val": records["val"]}, shards=3, threads=2, memory=root / "memory")
    assert capsys.readouterr().out.splitlines()[-1] == f"{root}/mindrecord/val: 16 images"
    images = ShardImages([other, file], Shards(root / "mindrecord", root))
    assert [load() for _, load in images.stream([1, 0])] == [file.read_bytes(), other.read_bytes()]


@pytest.mark.parametrize("noise", ["train.mindrecord0.db", "train.mindrecord0", "listing.json"])
def test_noise_is_an_error_that_names_the_folder(root, noise):
    path = root / "mindrecord/train" / noise
    with open(path, "r+b") as file:
        file.write(bytes(range(256)) * 64 if noise != "listing.json" else b"[")
    with pytest.raises(InputError, match=rf"{root}/mindrecord.*(damaged|cannot be read).*rewrite it"):
        list(build_image_source(settings(root), images_of(root, "data.mindrecord=mindrecord")).batches([np.arange(4)]))


def test_no_shards_at_all(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no MindRecord shards; write them with scripts/prepare"):
        Shards(tmp_path / "nowhere", tmp_path)


def test_an_interrupted_split_is_written_anew_and_a_whole_one_left(written, tmp_path, monkeypatch, capsys):
    records, _ = read_records(settings(written))
    folder = tmp_path / "shards"
    write_listing = mindrecord.write_listing

    def fail_at_val(part, shards):
        if part.name == "val.part":
            raise KeyboardInterrupt
        write_listing(part, shards)

    monkeypatch.setattr(mindrecord, "write_listing", fail_at_val)
    with pytest.raises(KeyboardInterrupt):
        write_splits(folder, written, records, shards=2, threads=2, memory=tmp_path / "memory")
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val.part"]
    before = (folder / "train/listing.json").stat().st_mtime_ns
    (folder / "val.part/listing.json").write_text('{"files"')
    assert len(Shards(folder, written).places) == 64
    monkeypatch.undo()
    write_splits(folder, written, records, shards=2, threads=2, memory=tmp_path / "memory")
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "val"]
    assert (folder / "train/listing.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"{folder}/train: 64 images, already there",
        f"{folder}/val: 16 images",
        f"{folder}/test: 16 images",
    ]


def test_other_images_replace_a_split(written, tmp_path):
    records, _ = read_records(settings(written))
    write_splits(tmp_path / "shards", written, {"val": records["val"]}, shards=2, threads=2, memory=tmp_path / "memory")
    write_splits(
        tmp_path / "shards", written, {"val": records["test"][:1]}, shards=2, threads=2, memory=tmp_path / "memory"
    )
    assert list(Shards(tmp_path / "shards", written).places) == [str(records["test"][0].file.relative_to(written))]


def test_folders_of_others_are_not_replaced(written, tmp_path):
    records, _ = read_records(settings(written))
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "images/val/mine.jpg").write_bytes(b"photograph")
    with pytest.raises(
        InputError, match=r"images/val holds no shards and is not replaced: choose another data\.mindrecord"
    ):
        write_splits(
            tmp_path / "images", written, {"val": records["val"]}, shards=2, threads=2, memory=tmp_path / "memory"
        )
    assert (tmp_path / "images/val/mine.jpg").read_bytes() == b"photograph"


def test_a_full_disk_is_refused_before_anything_is_written(written, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**8))
    records, _ = read_records(settings(written))
    with pytest.raises(InputError, match=r"shards: the images of train, val, test need 0\.3 GB, 0\.1 GB are free"):
        write_splits(
            tmp_path / "shards", written, records, shards=2, threads=2, memory=tmp_path / "memory"
        )  # 3 splits * 2 shards * 50 MB
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_broken_image_is_named_by_the_program(root):
    image = sorted((root / "images/val").iterdir())[3]
    whole = image.read_bytes()
    image.write_bytes(whole[:100] + bytes(100) + whole[200:])  # its ends are whole
    arguments = ["src.commands.prepare_mindrecord", "--config", "configs/demo/ce.yaml", *TINY, f"data.root={root}"]
    done = run("-m", *arguments, "data.mindrecord=again")
    assert done.returncode == 2
    assert f"error: {image}: truncated or broken; delete it" in done.stderr and "Traceback" not in done.stderr
    image.write_bytes(whole)
    done = run("-m", *arguments, "data.mindrecord=again", "--shards", "1")
    assert done.returncode == 0 and f"{root}/again/test: 16 images" in done.stdout
    listing = json.loads((root / "again/val/listing.json").read_text())
    assert sum(map(len, listing["shards"].values())) == 16
    assert [path.name for path in (root / "again").glob("*.part")] == []


def test_an_iterator_that_is_left_leaves_nothing(written):
    source = build_image_source(settings(written), images_of(written, "data.mindrecord=mindrecord"))
    order = np.tile(np.arange(64), 4).reshape(-1, 4)
    next(iter(source.batches(order)))  # MindData starts threads of its own once
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        batches = source.batches(order)
        next(batches)
        batches.close()
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= before
