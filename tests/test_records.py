"""Readers against files written by hand: what they read, what they leave out, and what they refuse."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import BAD, chunk, png
from PIL import Image

from src.config.load import load_config
from src.config.schema import DataConfig
from src.data import photographs
from src.data.photographs import UnusableImage, check_image, decode
from src.data.record import Record, Skipped
from src.data.records import load_records as load_data
from src.runtime.errors import InputError

FLICKR = Path(__file__).resolve().parents[1] / "../shared/data/flickr8k"
COCO = {"format": "coco", "annotations": "annotations/captions_{split}.json", "images": "images/{split}", "lists": None}
KARPATHY = {"format": "karpathy", "annotations": "dataset.json", "images": "img", "lists": None}


def data_config(root: Path, **settings: str | None) -> DataConfig:
    """The section `data` of a configuration."""
    return replace(load_config("configs/demo/ce.yaml").data, root=str(root), **settings)


def load_records(root: Path, **settings: str | None) -> tuple[dict[str, list[Record]], list[Skipped]]:
    return load_data(data_config(root, **settings))


def encoded(format: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(out, format)
    return out.getvalue()


def write_coco(root: Path, images: int = 4) -> dict[str, dict]:
    """Three splits of `images` images with two captions each; the JSON contents, to spoil and write again."""
    contents = {}
    for number, split in enumerate(("train", "val", "test")):
        ids = range(100 * number, 100 * number + images)
        contents[split] = {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "caption": f"Dog {i},\n take {k} ."} for i in ids for k in (0, 1)
            ],
            "categories": [],  # pycocotools would look for a category_id in every annotation
        }
        (root / "images" / split).mkdir(parents=True)
        for i in ids:
            (root / "images" / split / f"{i}.jpg").write_bytes(encoded())
    write_contents(root, contents)
    return contents


def write_contents(root: Path, contents: dict[str, dict]) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    for split, content in contents.items():
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def karpathy_entry(imgid: int, split: str, **more: object) -> dict:
    sentences = [{"raw": f"A cat {imgid} ."}, {"raw": "A cat ."}]
    return {"filename": f"{imgid}.jpg", "imgid": imgid, "split": split, "sentences": sentences, **more}


def write_karpathy(root: Path, entries: list[dict]) -> None:
    (root / "dataset.json").write_text(json.dumps({"dataset": "x", "images": entries}))
    for entry in entries:
        file = root / "img" / entry.get("filepath", "") / entry["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded())


def test_coco(tmp_path, capfd):
    write_coco(tmp_path)
    splits, skipped = load_records(root=tmp_path, **COCO)
    assert {split: [r.image_id for r in rows] for split, rows in splits.items()} == {
        "train": [0, 1, 2, 3], "val": [100, 101, 102, 103], "test": [200, 201, 202, 203]
    }  # fmt: skip
    assert splits["val"][1] == Record(101, tmp_path / "images/val/101.jpg", ("Dog 101, take 0 .", "Dog 101, take 1 ."))
    assert skipped == []
    assert capfd.readouterr().out == ""  # pycocotools prints


def test_karpathy_joins_restval_and_prefers_cocoid(tmp_path):
    write_karpathy(
        tmp_path,
        [
            karpathy_entry(0, "train", cocoid=57, filepath="train2014"),
            karpathy_entry(1, "test"),
            karpathy_entry(2, "restval"),
            karpathy_entry(3, "val"),
        ],
    )
    splits, _ = load_records(root=tmp_path, **KARPATHY)
    assert [(r.image_id, r.file) for r in splits["train"]] == [
        (57, tmp_path / "img/train2014/0.jpg"),
        (2, tmp_path / "img/2.jpg"),
    ]
    assert splits["val"][0].captions == ("A cat 3 .", "A cat .")
    assert [r.image_id for r in splits["test"]] == [1]


def test_lists_replace_the_splits(tmp_path):
    write_karpathy(tmp_path, [karpathy_entry(i, "train") for i in range(5)])
    for split, lines in {"train": "3.jpg\n\n0.jpg\n", "val": "1.jpg", "test": "2.jpg\r\n"}.items():
        (tmp_path / f"mini_{split}.txt").write_text(lines)
    splits, _ = load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})
    assert {s: [r.image_id for r in rows] for s, rows in splits.items()} == {"train": [3, 0], "val": [1], "test": [2]}

    twice = "'2.jpg' names two images or appears in a list already"
    for bad, words in {
        "2.jpg\n9.jpg": "'9.jpg' is not in",
        "2.jpg\n2.jpg": twice,
        "0.jpg": twice.replace("2.jpg", "0.jpg"),  # of the training list
    }.items():
        (tmp_path / "mini_test.txt").write_text(bad)
        with pytest.raises(InputError, match=rf"mini_test\.txt: .*{words}"):
            load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})
    (tmp_path / "mini_test.txt").unlink()
    assert load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})[0].keys() == {"train", "val"}
    (tmp_path / "mini_val.txt").unlink()
    with pytest.raises(InputError, match=r"mini_val\.txt: no such list; data.lists=mini needs one for train and val"):
        load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})


SPOILED = {
    "images no list": (lambda c: c.update(images={}), "captions_val.json: key 'images' is a dict, not a list"),
    "no annotations": (lambda c: c.pop("annotations"), "captions_val.json: key 'annotations' is missing"),
    "image no object": (lambda c: c["images"].insert(0, 3), r"images\[0\]: key 'id' is missing"),
    "no file name": (lambda c: c["images"][2].pop("file_name"), r"images\[2\]: key 'file_name' is missing"),
    "id another text": (lambda c: c["images"][1].update(id="101"), r"annotations\[2\]: image_id 101 is not among"),
    "id a fraction": (lambda c: c["images"][1].update(id=1.5), r"images\[1\]: key 'id' is a float, not a int or str"),
    "id a boolean": (lambda c: c["images"][1].update(id=True), r"images\[1\]: key 'id' is a bool"),
    "id twice": (lambda c: c["images"][1].update(id=100), r"images\[1\]: id 100 occurs twice"),
    "id of another split": (lambda c: c["images"].append({"id": 1, "file_name": "x.jpg"}), "id 1 in val belongs to .*"),
    "caption a number": (lambda c: c["annotations"][3].update(caption=7), r"annotations\[3\]: key 'caption' is a int"),
    "unknown image": (lambda c: c["annotations"][3].update(image_id=9), r"annotations\[3\]: image_id 9 is not among"),
    "leaves the root": (lambda c: c["images"][1].update(file_name="../../x.jpg"), r"images\[1\]: file name '../../x"),
    "absolute": (lambda c: c["images"][1].update(file_name="/etc/passwd"), "file name '/etc/passwd' does not stay"),
    "line break": (lambda c: c["images"][1].update(file_name="a\nb.jpg"), r"file name 'a\\nb.jpg' holds a control"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "split 'val' has no images"),
    "no captions": (
        lambda c: c.update(annotations=[]),
        "no captions, like 4 of the 4 .*; fix data.annotations",
    ),
}


@pytest.mark.parametrize("spoil,words", SPOILED.values(), ids=SPOILED.keys())
def test_wrong_schema(tmp_path, spoil, words):
    contents = write_coco(tmp_path)
    spoil(contents["val"])
    write_contents(tmp_path, contents)
    with pytest.raises(InputError, match=words) as caught:
        load_records(root=tmp_path, **COCO)
    assert "\n" not in str(caught.value)


BROKEN = {"half": b"{", "encoding": b"\xff\xfe{}", "empty": b"", "deep": b"[" * 100_000}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_json(tmp_path, content):
    write_coco(tmp_path)
    (tmp_path / "annotations/captions_val.json").write_bytes(content)
    with pytest.raises(InputError, match=r"captions_val\.json: not readable as JSON"):
        load_records(root=tmp_path, **COCO)


def test_missing_files_and_settings(tmp_path):
    with pytest.raises(InputError, match=r"captions_train\.json: no such file; set data\.root"):
        load_records(root=tmp_path, **COCO)
    with pytest.raises(InputError, match=r"data\.root=.*no such folder"):
        load_records(root=tmp_path / "nowhere", **COCO)
    with pytest.raises(InputError, match=r"data\.annotations='all\.json' needs \{split\}"):
        load_records(root=tmp_path, **{**COCO, "annotations": "all.json"})


def test_single_defects_are_skipped_and_listed(tmp_path):
    contents = write_coco(tmp_path, images=10)
    train = contents["train"]["annotations"]
    train[0]["caption"] = " \t\n"  # image 0 keeps its other caption
    train[2]["caption"], train[3]["caption"] = "...", "\ud800 dog"  # nothing is left of image 1
    write_contents(tmp_path, contents)
    folder = tmp_path / "images/train"
    (folder / "2.jpg").unlink()
    (folder / "3.jpg").write_bytes(b"")
    (folder / "4.jpg").write_bytes(encoded()[:-200])
    splits, skipped = load_records(root=tmp_path, **COCO)
    assert [r.image_id for r in splits["train"]] == [0, 5, 6, 7, 8, 9]
    assert splits["train"][0].captions == ("Dog 0, take 1 .",)
    assert skipped == [
        Skipped(folder / "0.jpg", "blank caption left out"),
        Skipped(folder / "1.jpg", "no captions"),
        Skipped(folder / "2.jpg", "missing"),
        Skipped(folder / "3.jpg", "empty"),
        Skipped(folder / "4.jpg", "truncated or broken"),
    ]


@pytest.mark.parametrize(
    "images,missing,refused", [(1, 1, True), (4, 2, False), (4, 3, True), (100, 5, False), (100, 6, True)]
)
def test_many_missing_files_mean_a_wrong_root(tmp_path, images, missing, refused):
    write_coco(tmp_path, images)
    for i in range(200, 200 + missing):
        (tmp_path / f"images/test/{i}.jpg").unlink()
    if refused:
        words = rf"test/200\.jpg: missing, like {missing} of the {images} images of split 'test'; check data\.root"
        with pytest.raises(InputError, match=words):
            load_records(root=tmp_path, **COCO)
    else:
        assert len(load_records(root=tmp_path, **COCO)[0]["test"]) == images - missing


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_check_image_by_format(tmp_path, format):
    file = tmp_path / "image"
    file.write_bytes(encoded(format))
    assert check_image(file) is None
    file.write_bytes(encoded(format)[: -len(encoded(format)) // 2])
    assert re.match("truncated or broken|a TIFF file that is broken", check_image(file))


def test_check_image_other_cases(tmp_path, monkeypatch):
    file = tmp_path / "image"
    file.write_bytes(encoded() + b"\0" * 100)  # the end marker is not at the end: Pillow decides
    assert check_image(file) is None
    file.write_bytes(b"<html>not found</html>")
    assert check_image(file) == "not an image"
    assert check_image(tmp_path) == "a folder, not an image"
    os.mkfifo(tmp_path / "pipe")  # opened without care, it would wait for a writer
    assert check_image(tmp_path / "pipe") == "not a regular file"
    monkeypatch.setattr(photographs, "MAX_PIXELS", 1000)
    for format in ("JPEG", "PNG", "BMP"):
        file.write_bytes(encoded(format))
        assert check_image(file) == "40 x 30 pixels, more than 1,000"
        with pytest.raises(UnusableImage, match="40 x 30 pixels"):
            decode(file.read_bytes())


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"folder.jpg", "zeros.png", "table.jpg", "text bomb.png"}))
def test_the_scan_finds_what_the_reader_refuses(tmp_path, name):
    """But for what is broken between good ends, which a cheap scan cannot see."""
    make, reason = BAD[name]
    make(tmp_path / name)
    assert reason.removesuffix(" pixels") in check_image(tmp_path / name)


def test_a_transparent_colour_of_sixteen_bits_is_found_by_the_scan(tmp_path):
    (tmp_path / "x.png").write_bytes(png(1, 1, 16, 2, bytes(7), chunk(b"tRNS", bytes(6))))
    assert check_image(tmp_path / "x.png") == "a transparent colour of 16 bits; save it with an alpha channel"


def test_tables_before_the_frame_are_no_size():
    """Huffman tables share their marker's range with the start of frame: FFC4 lies between FFC0 and FFCF."""
    data = encoded()
    place = data.index(b"\xff\xc4")
    table = data[place : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
    assert photographs._quick_size(data[:2] + table + data[2:], data[-32:]) == (40, 30)


@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k is not here")
def test_flickr8k_lists():
    splits, skipped = load_records(
        format="karpathy", root=FLICKR, annotations="dataset_flickr8k.json", images="img", lists="mini"
    )
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2000, "val": 250, "test": 500}
    assert skipped == []
    assert all(len(record.captions) == 5 for rows in splits.values() for record in rows)
