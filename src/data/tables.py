"""Captions in tables: a row for each caption, or JSON lines with one or more captions each.

The layout is recognised by its first line:

    image,caption                          Flickr8k's captions.txt of Kaggle; other columns may stand between
    image_name| comment_number| comment    Flickr30k's results.csv, also with commas, tabs or semicolons
    1.jpg#0<TAB>A red ball .               Flickr8k.token.txt, without a header
    {"file_name": "1.jpg", "text": "..."}  metadata.jsonl of Hugging Face's image folders; a list of texts too

An image's id is its file name as the table has it.
"""

import ast
import csv
import hashlib
import io
import json
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.data.image_formats import KNOWN_SUFFIXES
from src.data.record import MEND, SPLIT_NAMED, SPLITS, Record, Skipped, inside, one_line, split_file, tolerated
from src.runtime.environment import say_once
from src.runtime.errors import InputError
from src.runtime.files import text_lines

_IMAGE = ("file_name", "filename", "image", "image_name", "file", "image_path", "image_file")
_CAPTION = ("caption", "captions", "comment", "text", "texts", "sentence", "sentences", "raw")
_DELIMITERS = "\t|;,"
_TOKEN = re.compile(r"([^\t]+)#\d+\t")  # 1.jpg#0 and a tab
_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)", re.DOTALL)  # "4   A dog runs .", without the delimiter
_IMAGE_FILE = re.compile(rf"(?:{'|'.join(map(re.escape, KNOWN_SUFFIXES))})\s*$", re.IGNORECASE)
_KNOWN = "a header with image and caption (or file_name and text), 1.jpg#0<TAB>caption, or JSON lines"


class Row(NamedTuple):
    """Captions of an image, from the line `line`; split: as the row names it."""

    line: int
    image: str
    captions: Sequence[str]
    split: str | None = None


class Broken(NamedTuple):
    """A row that cannot be read, and why."""

    line: int
    reason: str


def read_table(
    root: Path, annotations: str, images: str, wanted: Sequence[str], pooled: bool
) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """The records of each split: a table for each where `annotations` holds {split}; else as a column `split` says,
    else by a digest of the image's name. pooled: splits do not matter. A few broken rows are left out.

    Errors: InputError naming the file and the line.
    """
    if "{split}" not in annotations:
        path = root / annotations
        records, named, skipped = _read_file(path, root / images)
        if pooled:
            return {"train": records}, skipped
        if not named:
            return split_by_name(records, path), skipped
        splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for record in records:
            splits[named[record.image_id]].append(record)
        return splits, skipped
    splits, skipped = {}, []
    for split in wanted:
        path, word = split_file(root, annotations, split)
        if split == "test" and not path.exists():
            continue
        before, pattern, _ = images.partition("{split}")  # where splits have folders, ids begin with them
        prefix = images.removeprefix(before).replace("{split}", word) + "/" if pattern else ""
        records, _, left_out = _read_file(path, root / images.replace("{split}", word), prefix)
        splits[split] = records
        skipped += left_out
    return splits, skipped


def split_by_name(records: Sequence[Record], path: Path) -> dict[str, list[Record]]:
    """Four fifths to train on, a tenth each to validate and test, by a digest of the image ids alone: other rows, or
    another order of them, move no image. Where that leaves a split empty, it takes one image of the largest.
    """
    if len(records) < len(SPLITS):
        raise InputError(f"{path}: {len(records)} images are too few for {', '.join(SPLITS)}; add images")

    def digest(record: Record) -> int:
        return int.from_bytes(hashlib.sha256(str(record.image_id).encode()).digest()[:8], "big")

    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        splits[{0: "val", 1: "test"}.get(digest(record) % 10, "train")].append(record)
    for rows in splits.values():
        if not rows:
            largest = max(splits.values(), key=len)
            rows.append(min(largest, key=digest))
            largest.remove(rows[0])
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    say_once(f"{path}: split by a digest of the file names: {sizes} images; data.lists=NAME takes your own lists")
    return splits


def _read_file(path: Path, folder: Path, prefix: str = "") -> tuple[list[Record], dict[Any, str], list[Skipped]]:
    """The images of a table in the order of their first rows, their splits where it names them, and broken rows."""
    try:
        lines = text_lines(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; set data.root and data.annotations") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); save it as UTF-8 text") from None
    found = list(_rows(path, lines))
    rows = [row for row in found if isinstance(row, Row)]
    broken = [row for row in found if isinstance(row, Broken)]
    if len(broken) > tolerated(len(found)):
        reason = f"line {broken[0].line}: {broken[0].reason}"
        raise InputError(f"{path}: {reason}, like {len(broken)} of the {len(found)} rows; {MEND}")
    captions: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    splits: dict[Any, str] = {}
    for row in rows:
        where = f"{path}: line {row.line}"
        exact = row.image == row.image.strip() or os.path.exists(folder / row.image)
        file = inside(folder, row.image if exact else row.image.strip(), where)
        image_id = prefix + file.relative_to(folder).as_posix()
        files[image_id] = file
        captions.setdefault(image_id, []).extend(row.captions)
        if row.split is not None:
            split = SPLIT_NAMED.get(row.split.lower())
            if split is None or splits.setdefault(image_id, split) != split:
                raise InputError(
                    f"{where}: split {row.split!r} of {row.image} is none of train, val, test, or another "
                    f"than in a row before; {MEND}"
                )
    if splits and len(splits) < len(files):
        raise InputError(f"{path}: some rows name a split, others do not; {MEND}")
    records = [Record(image_id, file, tuple(captions[image_id])) for image_id, file in files.items()]
    return records, splits, [Skipped(path, f"line {row.line}: {row.reason}") for row in broken]


def _rows(path: Path, lines: Sequence[str]) -> Iterator[Row | Broken]:
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise InputError(f"{path}: holds no rows; write one caption a line")
    if lines[start].lstrip().startswith("{"):
        return _json_rows(lines)
    if _TOKEN.match(lines[start]):
        return _token_rows(lines)
    if lines[start].lstrip().startswith("["):
        raise InputError(f"{path}: is a JSON list; write its objects one a line, as metadata.jsonl has them")
    for delimiter in _DELIMITERS:
        try:
            cells = next(csv.reader([lines[start]], delimiter=delimiter))
        except csv.Error:  # a field longer than csv takes
            continue
        header = [cell.strip().lower().replace(" ", "_") for cell in cells]
        image, caption = (next((name for name in names if name in header), None) for names in (_IMAGE, _CAPTION))
        if image is not None and caption is not None:
            columns = header.index(image), header.index(caption)
            return _delimited_rows(path, lines, start, delimiter, header, *columns)
    raise InputError(f"{path}: line {start + 1}: {lines[start][:60]!r} is no layout that is known; have {_KNOWN}")


def _json_rows(lines: Sequence[str]) -> Iterator[Row | Broken]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            yield Broken(number, "not a JSON object")
            continue
        if not isinstance(entry, dict):
            yield Broken(number, "not a JSON object")
            continue
        image, texts = (next((entry[key] for key in keys if key in entry), None) for keys in (_IMAGE, _CAPTION))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(image, str) or not image.strip():
            yield Broken(number, "no file_name that is a text")
        elif not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            yield Broken(number, "no text that is a text or a list of texts")
        else:
            split = entry.get("split")
            yield Row(number, image, texts, split if isinstance(split, str) else None)


def _token_rows(lines: Sequence[str]) -> Iterator[Row | Broken]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = _TOKEN.match(line)
            yield Row(number, match[1], [line[match.end() :]]) if match else Broken(number, "not NAME#N<TAB>caption")


def _delimited_rows(
    path: Path, lines: Sequence[str], start: int, delimiter: str, header: list[str], image: int, caption: int
) -> Iterator[Row | Broken]:
    """image, caption: their columns in `header`, which is line `start` (from 0)."""
    reader = csv.reader((line + "\n" for line in lines[start + 1 :]), delimiter=delimiter)
    begins = ends = start + 1  # lines of a row, from 0
    while True:
        begins = ends
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}: line {begins + 1}: {error}; {MEND}") from None
        ends = start + 1 + reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if any(_is_row(line, delimiter, len(header), image) for line in lines[begins + 1 : ends]):
            raise InputError(f"{path}: line {begins + 1}: a quotation mark is not closed; close it, or remove it")
        yield _delimited_row(begins + 1, cells, delimiter, header, image, caption)


def _is_row(line: str, delimiter: str, columns: int, image: int) -> bool:
    """Whether a line within quotation marks is a row of its own, which they should not have reached."""
    cells = line.split(delimiter)
    return len(cells) >= columns and _IMAGE_FILE.search(cells[image]) is not None


def _delimited_row(
    line: int, cells: list[str], delimiter: str, header: list[str], image: int, caption: int
) -> Row | Broken:
    last = caption == len(header) - 1
    counted = last and header[caption - 1].endswith("number") and len(cells) >= caption
    numbered = _NUMBERED.match(cells[caption - 1]) if counted else None
    if numbered:
        cells = [*cells[: caption - 1], "", delimiter.join([numbered[1], *cells[caption:]])]
    elif len(cells) > len(header) and last:  # the delimiter in a caption without quotation marks
        cells = [*cells[:caption], delimiter.join(cells[caption:])]
    if not max(image, caption) < len(cells) <= len(header):
        return Broken(line, f"{len(cells)} columns in place of {len(header)}")
    if not cells[image].strip():
        return Broken(line, "no name of an image")
    split = cells[header.index("split")].strip() if "split" in header[: len(cells)] else ""
    return Row(line, cells[image], _texts(cells[caption]), split or None)


def _texts(cell: str) -> list[str]:
    """The captions of a cell: one, or those of a list as JSON, Python and NumPy (without commas) write it."""
    if cell.lstrip().startswith("["):
        try:
            texts = ast.literal_eval(cell.strip())
            tokens = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
            strings = [token.string for token in tokens if token.type == tokenize.STRING]
            if len(strings) != len(texts):  # Python joins strings that stand beside each other
                texts = [ast.literal_eval(text) for text in strings]
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            return [cell]
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
    return [cell]
