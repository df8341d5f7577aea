"""Tables of captions, written by hand as their sources write them: what is read, left out, and refused."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from test_records import data_config, load_records

from src.data.record import Record
from src.data.records import read_annotations
from src.data.tables import read_table, split_by_name
from src.runtime.errors import InputError

# Two images with three captions each, the second with a comma, a quotation mark and a character beyond ASCII.
EXPECTED = {"1.jpg": ("A red ball .", "A ball", "A dog runs ."), "b 2.jpg": ('A dog, "Rex" .', "Ein Hündchen", "x|y")}
KAGGLE = """image,caption
1.jpg,A red ball .
1.jpg,A ball
b 2.jpg,"A dog, ""Rex"" ."

1.jpg,A dog runs .
b 2.jpg,Ein Hündchen
b 2.jpg,x|y
"""
FLICKR30K = """image_name| comment_number| comment
1.jpg| 0| A red ball .
1.jpg| 1| A ball
b 2.jpg| 0| A dog, "Rex" .
1.jpg| 4   A dog runs .
b 2.jpg| 1| Ein Hündchen
b 2.jpg| 2| x|y
"""
TOKEN = """1.jpg#0\tA red ball .
1.jpg#1\tA ball
b 2.jpg#0\tA dog, "Rex" .
1.jpg#4\tA dog runs .
b 2.jpg#1\tEin Hündchen
b 2.jpg#2\tx|y
"""
ROWS = [("1.jpg", "A red ball ."), ("1.jpg", "A ball"), ("b 2.jpg", 'A dog, "Rex" .'), ("1.jpg", "A dog runs ."),
        ("b 2.jpg", "Ein Hündchen"), ("b 2.jpg", "x|y")]  # fmt: skip
LAYOUTS = {
    "kaggle": KAGGLE,
    "flickr30k": FLICKR30K,
    "flickr30k with commas": KAGGLE.replace("image,caption", " Image_Name , comment_number , comment ")
    .replace("jpg,", "jpg, 0,")
    .replace("1.jpg, 0,A dog runs", "1.jpg, 4   A dog runs"),
    "an index, and the caption in the middle": "".join(
        f"{number},{line},{end}\n"
        for number, line, end in zip(["", *range(6)], KAGGLE.replace("\n\n", "\n").splitlines(), ["source", *"uvwxyz"])
    ),
    "token": TOKEN,
    "tabs": "file_name\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in ROWS),
    "semicolons": "Image;Caption\n" + "".join(f"{name};{text}\n" for name, text in ROWS),
    "json lines": "".join(json.dumps({"file_name": n, "text": t}, ensure_ascii=False) + "\n" for n, t in ROWS),
    "json lists": "".join(json.dumps({"image": n, "captions": list(t)}) + "\n" for n, t in EXPECTED.items()),
    "lists in a cell": 'file_name,raw\n1.jpg,"[""A red ball ."", ""A ball"", ""A dog runs .""]"\n'
    "b 2.jpg,\"['A dog, \"\"Rex\"\" .', 'Ein Hündchen', 'x|y']\"\n",
}


def table(root: Path, text: str, encoding: str = "utf-8") -> tuple[dict, list]:
    (root / "table").write_bytes(text.encode(encoding))
    config = data_config(root, annotations="table", images="img", lists="mini")
    splits, skipped = read_table(config, ("train", "val", "test"))
    return {record.image_id: record.captions for record in splits["train"]}, skipped


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_are_recognised_by_their_first_line(tmp_path, text):
    for variant in (text, text.replace("\n", "\r\n"), "\n" + text.rstrip("\n"), text.replace("\n", " \t\n", 1)):
        for encoding in ("utf-8", "utf-8-sig"):
            found, skipped = table(tmp_path, variant, encoding)
            assert {name: tuple(c.strip() for c in texts) for name, texts in found.items()} == EXPECTED
            assert skipped == []


def test_line_separators_and_line_breaks_in_captions(tmp_path):
    text = 'image,caption\n1.jpg,"A dog\u2028runs\x85."\n2.jpg,"A red\nball"\n3.jpg,"no \x1c end"\n'
    found, _ = table(tmp_path, text)
    assert [" ".join(texts[0].split()) for texts in found.values()] == ["A dog runs .", "A red ball", "no end"]
    found, _ = table(
        tmp_path, '{"file_name": "1.jpg", "text": "A\u2028dog"}\n{"file_name": "2.jpg", "text": "b\x85"}\n'
    )
    assert found == {"1.jpg": ("A\u2028dog",), "2.jpg": ("b\x85",)}


def test_names_keep_blanks_that_files_have(tmp_path):
    (tmp_path / "img").mkdir()
    for name in (" 1.jpg", "two\u202fAM.jpg ", "3.jpg"):
        (tmp_path / "img" / name).touch()
    found, _ = table(tmp_path, "image,caption\n 1.jpg,a\ntwo\u202fAM.jpg ,b\n 3.jpg ,c\n./3.jpg,d\nx/../3.jpg,e\n")
    assert found == {" 1.jpg": ("a",), "two\u202fAM.jpg ": ("b",), "3.jpg": ("c", "d", "e")}


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "table: holds no rows"),
        (
            "\n\nname,words\n1.jpg,a\n",
            "table: line 3: 'name,words' is an unknown layout; use a header",
        ),
        ("image,caption\n" + "1.jpg\n" * 5, "table: line 2: 1 columns instead of 2, like 5 of the 5 rows"),
        ('image,caption\n1.jpg,"A dog\n2.jpg,b\n3.jpg,"c"\n', "table: line 2: a quotation mark is not closed"),
        ('image,caption\n1.jpg,a\n2.jpg,"A dog\n3.jpg,b\n', "table: line 3: a quotation mark is not closed"),
        ("image,caption\n../1.jpg,a\n", "table: line 2: file name '../1.jpg' does not stay within"),
        ("image,caption\n1\x00.jpg,a\n", "table: line 2: "),
        ('{"file_name": "1.jpg"}\n', "table: line 1: no text that is a text or a list of texts, like 1 of the 1 rows"),
        ('{"text": "a"}\n', "table: line 1: no file_name"),
        ("1.jpg#0\ta\n" + "1.jpg a\n" * 9, "table: line 2: not NAME#N<TAB>caption, like 9 of the 10"),
        (
            "image,caption,split\n1.jpg,a,holdout\n",
            "line 2: split 'holdout' of 1.jpg is none of train, val, test",
        ),
        ("image,caption,split\n1.jpg,a,train\n1.jpg,a,val\n", "table: line 3: split 'val' of 1.jpg"),
        ("image,caption,split\n1.jpg,a,train\n2.jpg,a,\n", "table: some rows name a split, others do not"),
        ("image,caption\n1.jpg,a\n2.jpg," + "a" * 2000 + "\n", "table: line 3: field larger than field limit"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_number(tmp_path, text, words, request):
    limit = csv.field_size_limit(1000)
    request.addfinalizer(lambda: csv.field_size_limit(limit))
    with pytest.raises(InputError, match=words) as caught:
        table(tmp_path, text)
    assert "\n" not in str(caught.value)
    (tmp_path / "table").write_bytes("image,caption\n1.jpg,naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"table: cannot be read .*; save it as UTF-8"):
        read_table(data_config(tmp_path, annotations="table"), ("train",))


def test_a_few_broken_rows_are_left_out_and_named(tmp_path):
    found, skipped = table(tmp_path, KAGGLE + "1.jpg\n,A cat\n")
    assert {name: len(texts) for name, texts in found.items()} == {"1.jpg": 3, "b 2.jpg": 3}
    assert [(s.file.name, s.reason) for s in skipped] == [
        ("table", "line 9: 1 columns instead of 2"),
        ("table", "line 10: no name of an image"),
    ]


def records(count: int) -> list[Record]:
    return [Record(f"{number}.jpg", Path(f"{number}.jpg"), ("a",)) for number in range(count)]


def test_splits_by_name_depend_on_no_other_image(capsys, monkeypatch):
    monkeypatch.delenv("CAPTIONER_SAID", raising=False)
    splits = split_by_name(records(1000), Path("t.csv"))
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sum(sizes.values()) == 1000 and 70 < sizes["val"] < 130 and 70 < sizes["test"] < 130
    where = {record.image_id: split for split, rows in splits.items() for record in rows}
    again = split_by_name(records(300)[::-1], Path("t.csv"))
    assert all(where[record.image_id] == split for split, rows in again.items() for record in rows)
    line = (
        f"t.csv: split by a digest of the file names: {sizes['train']} train, {sizes['val']} val, {sizes['test']} test"
    )
    assert line in capsys.readouterr().err


def test_small_sets_have_an_image_in_every_split():
    for count in range(3, 30):
        splits = split_by_name(records(count), Path("t"))
        assert all(splits.values()) and sum(map(len, splits.values())) == count
        other = split_by_name(records(count)[::-1], Path("t"))
        assert all({r.image_id for r in splits[s]} == {r.image_id for r in other[s]} for s in splits)
    with pytest.raises(InputError, match="t: 2 images are too few for train, val, test"):
        split_by_name(records(2), Path("t"))


def test_a_column_names_the_splits_and_lists_replace_them(tmp_path):
    rows = [("1.jpg", "train"), ("2.jpg", "validation"), ("3.jpg", "test"), ("4.jpg", "restval"), ("5.jpg", "dev")]
    text = "image,caption,split\n" + "".join(f"{name},A dog .,{split}\n" for name, split in rows)
    (tmp_path / "t.csv").write_text(text)
    splits, _ = read_annotations(data_config(tmp_path, format="table", images=".", annotations="t.csv"))
    found = {split: [r.image_id for r in rows] for split, rows in splits.items()}
    assert found == {"train": ["1.jpg", "4.jpg"], "val": ["2.jpg", "5.jpg"], "test": ["3.jpg"]}
    for word, names in {"train": "5.jpg\n1.jpg\n", "dev": "2\n"}.items():
        (tmp_path / f"Flickr_8k.{word}Images.txt").write_text(names)
    splits, _ = read_annotations(
        data_config(tmp_path, format="table", images=".", annotations="t.csv", lists="Flickr_8k.{split}Images.txt")
    )
    assert {s: [r.image_id for r in rows] for s, rows in splits.items()} == {
        "train": ["5.jpg", "1.jpg"],
        "val": ["2.jpg"],
    }


def test_image_folders_of_hugging_face(tmp_path):
    """A folder for each split, with names that come again in the next; no test."""
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for name in ("0.png", "1.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / split / name)
        lines = [json.dumps({"file_name": name, "text": f"A {split} dog"}) for name in ("0.png", "1.png")]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    splits, skipped = load_records(
        format="table", root=tmp_path, annotations="{split}/metadata.jsonl", images="{split}", lists=None
    )
    found = [
        (s, r.image_id, str(r.file.relative_to(tmp_path)), *r.captions) for s, rows in splits.items() for r in rows
    ]
    assert found == [
        ("train", "train/0.png", "train/0.png", "A train dog"),
        ("train", "train/1.png", "train/1.png", "A train dog"),
        ("val", "validation/0.png", "validation/0.png", "A validation dog"),
        ("val", "validation/1.png", "validation/1.png", "A validation dog"),
    ]
    assert skipped == []


def test_flickr8k_without_lists(tmp_path):
    """The row of Flickr8k.token.txt whose image is in no copy of the data set is skipped like other missing files."""
    names = [f"{number}.jpg" for number in range(60)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    lines = [f"{name}#{k}\tA dog {k} .\n" for name in (*names, "2258277193.jpg.1") for k in range(5)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(lines))
    splits, skipped = load_records(
        format="table", root=tmp_path, annotations="Flickr8k.token.txt", images=".", lists=None
    )
    assert Counter(len(r.captions) for rows in splits.values() for r in rows) == {5: 60}
    assert [(s.file.name, s.reason) for s in skipped] == [("2258277193.jpg.1", "missing")]


def test_a_list_of_captions_as_numpy_writes_it(tmp_path):
    found, _ = table(tmp_path, "image,caption\n1.jpg,\"['A dog runs.' 'A red ball.'\n 'Third one']\"\n")
    assert found == {"1.jpg": ("A dog runs.", "A red ball.", "Third one")}


def test_a_row_without_its_delimiter_keeps_the_others_in_its_caption(tmp_path):
    for delimiter in ",|":
        header = delimiter.join(("image_name", " comment_number", " comment"))
        found, _ = table(tmp_path, f"{header}\n1.jpg{delimiter} 4   A dog {delimiter} running .\n")
        assert found == {"1.jpg": (f"A dog {delimiter} running .",)}


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"image": "1.jpg", "caption": ["' + 150_000 * "a" + '"]}]', "is a JSON list; write one object per line"),
        (150_000 * "a" + ",caption\n", "line 1: .* is an unknown layout"),
        ('image,caption\n1.heic,"A sign\n2.heic,A dog\n3.heic,A "ball\n', "line 2: a quotation mark is not closed"),
    ],
)
def test_more_that_cannot_be_read_is_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        table(tmp_path, text)


def test_splits_are_named_in_any_case(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption,split\n1.jpg,a,Train\n2.jpg,b,VALIDATION\n3.jpg,c,Test\n")
    splits, _ = read_table(data_config(tmp_path, annotations="t.csv"), ("train", "val", "test"))
    assert {split: [record.image_id for record in rows] for split, rows in splits.items()} == {
        "train": ["1.jpg"],
        "val": ["2.jpg"],
        "test": ["3.jpg"],
    }


def test_an_image_of_two_splits_is_refused(tmp_path):
    """Tables that were divided by rows, not by images: its test captions would be trained on."""
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n{split}.jpg,a dog\n7.jpg,a {split} cat\n")
    with pytest.raises(InputError, match=r"7\.jpg: is in the splits train and val; keep an image in one of them"):
        load_records(root=tmp_path, format="table", annotations="{split}.csv", images=".", lists=None)
