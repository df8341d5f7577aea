"""What the readers of annotations share: names of files, image ids, and the splits that a data set has."""

import json
from pathlib import Path

import pytest
from test_records import COCO, KARPATHY, karpathy_entry, load_records, write_coco, write_contents, write_karpathy

from src.config.load import load_config
from src.data.locate import evaluated_split, read_records
from src.data.record import inside, with_known_ids
from src.runtime.errors import InputError


def test_names_are_refused_only_where_no_file_of_the_folder_can_have_them(tmp_path):
    """Blanks of every kind, joiners, soft hyphens and letters of any script stand in names of files."""
    names = ["Screenshot 9.41.12\u202fAM.jpg", "a\u00a0b.jpg", " a .jpg ", "\u3000.jpg", "so\u00adft.jpg"]
    names += ["\U0001f468\u200d\U0001f469.jpg", "e\u0301.jpg", "\u202ecod.jpg", "\u2028.jpg", "日本.jpg"]
    names += ["a/../up.jpg", "./dot.jpg", "..a.jpg", f"{tmp_path}/img/whole.jpg"]
    write_karpathy(tmp_path, [karpathy_entry(i, "train", filename=name) for i, name in enumerate(names, 5)])
    entries = json.loads((tmp_path / "dataset.json").read_text())["images"]
    write_karpathy(tmp_path, [*entries, karpathy_entry(1, "val"), karpathy_entry(2, "test")])
    splits, skipped = load_records(root=tmp_path, **KARPATHY)
    assert [r.file.name for r in splits["train"]] == [*names[:10], "up.jpg", "dot.jpg", "..a.jpg", "whole.jpg"]
    assert not skipped and all(r.file.is_file() and r.file.parent == tmp_path / "img" for r in splits["train"])
    for name in ("a\x00.jpg", "a\x7f", "\x85.jpg", "a\r", "\ud800.jpg"):
        with pytest.raises(InputError, match="holds a control character"):
            inside(tmp_path, name, "here")
    beside = f"{tmp_path}-other/b.jpg"
    for name in ("", ".", "..", "a/..", "../b.jpg", "a/../../b.jpg", "/etc/passwd", beside, str(tmp_path)):
        with pytest.raises(InputError, match=r"here: file name .* does not stay within"):
            inside(tmp_path, name, "here")
    assert inside(Path("rel"), "a/b.jpg", "") == Path("rel/a/b.jpg")


def test_lists_with_blanks_folders_marks_and_without_suffixes(tmp_path):
    names = ["a.jpg", "b\u202f.jpg", " c.jpg", "d\u2028.jpg"]
    entries = [karpathy_entry(i, "train", filename=name, filepath="x") for i, name in enumerate(names)]
    entries += [
        karpathy_entry(9, "train", filename="a.jpg", filepath="y"),
        karpathy_entry(10, "train", filename="a.png"),
    ]
    write_karpathy(tmp_path, entries)
    (tmp_path / "mini_train.txt").write_bytes("x/a.jpg\r\n\r\nb\u202f.jpg  \r\n".encode("utf-8-sig"))
    (tmp_path / "mini_val.txt").write_text(" c.jpg\nd\u2028\n")
    (tmp_path / "mini_test.txt").write_text("y/a\n./a.png\n")
    splits, _ = load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})
    assert {s: [r.image_id for r in rows] for s, rows in splits.items()} == {
        "train": [0, 1],
        "val": [2, 3],
        "test": [9, 10],
    }
    (tmp_path / "mini_test.txt").write_text("a.jpg\n")
    with pytest.raises(InputError, match=r"'a\.jpg' names two images"):
        load_records(root=tmp_path, **{**KARPATHY, "lists": "mini"})


def test_image_ids_that_are_texts(tmp_path):
    contents = write_coco(tmp_path)
    for content in contents.values():
        for image in content["images"]:
            image["id"] = f"{image['id']:06}"
        for entry in content["annotations"]:
            entry["image_id"] = f"{entry['image_id']:06}"
    write_contents(tmp_path, contents)
    splits, _ = load_records(root=tmp_path, **COCO)
    assert [r.image_id for r in splits["val"]] == ["000100", "000101", "000102", "000103"]
    contents["val"]["images"][0]["id"] = contents["val"]["annotations"][0]["image_id"] = 100
    contents["val"]["annotations"][1]["image_id"] = 100
    write_contents(tmp_path, contents)
    with pytest.raises(
        InputError, match=r"val/100\.jpg has the number 100 as image id, .*train/0\.jpg the text '000000'"
    ):
        load_records(root=tmp_path, **COCO)


def test_ids_of_other_files_are_numbers_or_texts_of_numbers():
    assert with_known_ids({"7": "a", 8: "b", "x": "c"}, [7, 8], "f") == {7: "a", 8: "b", "x": "c"}
    assert with_known_ids({7: "a", "8": "b"}, ["7", "8"], "f") == {"7": "a", "8": "b"}
    assert with_known_ids({"000000391895": "a"}, [391895], "f") == {391895: "a"}
    with pytest.raises(InputError, match="f: image_id '7' appears as a number and as a text"):
        with_known_ids({7: "a", "7": "b"}, [7], "f")


def spoil_test(root: Path, how: str) -> None:
    path = root / "annotations/captions_test.json"
    content = json.loads(path.read_text())
    if how == "missing":
        path.unlink()
    elif how == "without annotations":
        path.write_text(json.dumps({"images": content["images"]}))
    else:
        path.write_text(json.dumps({**content, "annotations": []}))


@pytest.mark.parametrize("how", ["missing", "without annotations", "without captions"])
def test_a_test_split_without_captions_is_none(tmp_path, how, capsys, monkeypatch):
    """COCO 2017 as it is downloaded; evaluation is on val, which is said once."""
    write_coco(tmp_path)
    spoil_test(tmp_path, how)
    monkeypatch.setenv("CAPTIONER_SAID", str(tmp_path / "said"))  # as programs do for a command
    assert load_records(root=tmp_path, **COCO)[0].keys() == {"train", "val"}
    settings = [f"data.root={tmp_path}", "data.dataset=x", *(f"data.{k}={v}" for k, v in COCO.items() if v)]
    config = load_config("configs/demo/ce.yaml", settings)
    assert evaluated_split(config, None) == evaluated_split(config, None) == "val"
    assert evaluated_split(config, "val") == "val"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path} has no test split with captions: evaluating on val, which also selects the best weights"
    ]
    with pytest.raises(InputError, match=r"--split test: .* has no test split with captions; pass --split val"):
        evaluated_split(config, "test")
    (tmp_path / "annotations/captions_val.json").unlink()
    with pytest.raises(InputError, match=r"captions_val\.json: no such file"):
        load_records(root=tmp_path, **COCO)


def test_a_split_that_is_scored_needs_no_image_and_no_other_split(tmp_path):
    write_coco(tmp_path)
    for path in (*tmp_path.glob("images/*/*"), *tmp_path.glob("annotations/captions_t*")):
        if path.name != "captions_test.json":
            path.unlink()
    settings = [f"data.root={tmp_path}", "data.dataset=x", *(f"data.{k}={v}" for k, v in COCO.items() if v)]
    splits, _ = read_records(load_config("configs/demo/ce.yaml", settings), "test")
    assert [r.image_id for r in splits["test"]] == [200, 201, 202, 203]


def test_annotations_as_windows_writes_them(tmp_path):
    contents = write_coco(tmp_path)
    for split, encoding in {"train": "utf-8-sig", "val": "utf-16", "test": "utf-8"}.items():
        text = json.dumps(contents[split], ensure_ascii=False).replace("Dog", "D\u2028og")
        (tmp_path / f"annotations/captions_{split}.json").write_bytes(text.encode(encoding))
    splits, _ = load_records(root=tmp_path, **COCO)
    assert {split: rows[0].captions[0] for split, rows in splits.items()} == {
        "train": "D og 0, take 0 .", "val": "D og 100, take 0 .", "test": "D og 200, take 0 ."
    }  # fmt: skip
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(InputError, match=r"captions\.txt: not readable as JSON .*; set data\.format=table"):
        load_records(root=tmp_path, **{**KARPATHY, "annotations": "captions.txt"})
