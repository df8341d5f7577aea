"""Captions in tables: a row for each caption, or JSON lines with one or more captions each.

The first line tells the layout:

    image,caption                          Flickr8k's captions.txt of Kaggle; other columns may stand between
    image_name| comment_number| comment    Flickr30k's results.csv, also with commas, tabs or semicolons
    1.jpg#0<TAB>A red ball .               Flickr8k.token.txt, without a header
    {"file_name": "1.jpg", "text": "..."}  metadata.jsonl of Hugging Face's image folders; a list of texts too

An image's id is its file name as the table has it.
"""

import ast
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from src.config.schema import DataConfig
from src.data.image_formats import KNOWN_SUFFIXES
from src.data.record import FIX, SPLIT_NAMED, SPLITS, Record, Skipped, inside, split_files, tolerated
from src.runtime.environment import say_once
from src.runtime.errors import InputError
from src.runtime.files import read_text_lines

_IMAGE = ("file_name", "filename", "image", "image_name", "file", "image_path", "image_file")
_CAPTION = ("caption", "captions", "comment", "text", "texts", "sentence", "sentences", "raw")
_DELIMITERS = "\t|;,"
_TOKEN = re.compile(r"([^\t]+)#\d+\t")  # 1.jpg#0 and a tab
_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)", re.DOTALL)  # "4   A dog runs .", without the delimiter
_IMAGE_FILE = re.compile(rf"(?:{'|'.join(map(re.escape, KNOWN_SUFFIXES))})\s*$", re.IGNORECASE)
_KNOWN = "a header with image and caption (or file_name and text), 1.jpg#0<TAB>caption, or JSON lines"


class _Row(NamedTuple):
    """An image and its captions; split: as the row names it."""

    image: str
    captions: Sequence[str]
    split: str | None = None


class _BrokenRow(ValueError):
    """Says why a row cannot be read."""


# Numbered rows, and the function that reads one of them or raises _BrokenRow.
_Layout = tuple[Iterator[tuple[int, Any]], Callable[[Any], _Row]]


def read_table(data: DataConfig, wanted: Sequence[str]) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """Read the records of each split, and skip a few broken rows.

    Splits have a table each if `annotations` holds {split}; else a column `split` or a digest of the image's name
    assigns them, unless data.lists does so later. Raises InputError naming the file and the line.
    """
    root = Path(data.root)
    if "{split}" not in data.annotations:
        path = root / data.annotations
        records, named, skipped = _read_file(path, root / data.images)
        if data.lists is not None:
            return {"train": records}, skipped
        if not named:
            return split_by_name(records, path), skipped
        return {split: [row for row in records if named[row.image_id] == split] for split in SPLITS}, skipped
    splits, skipped = {}, []
    for split, path, word in split_files(root, data.annotations, wanted):
        before, pattern, _ = data.images.partition("{split}")  # if splits have folders, ids begin with them
        folder = data.images.replace("{split}", word)
        prefix = folder.removeprefix(before) + "/" if pattern else ""
        splits[split], _, left_out = _read_file(path, root / folder, prefix)
        skipped += left_out
    return splits, skipped


def split_by_name(records: Sequence[Record], path: Path) -> dict[str, list[Record]]:
    """Use four fifths for training, a tenth each for validation and test, by a digest of the image ids alone.

    Other rows, or another order of them, move no image. An empty split takes one image of the largest.
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
    say_once(f"{path}: split by a digest of the file names: {sizes} images; set data.lists=NAME to use your own lists")
    return splits


def _read_file(path: Path, folder: Path, prefix: str = "") -> tuple[list[Record], dict[Any, str], list[Skipped]]:
    """Return the images of a table in the order of their first rows, their splits if it names any, and broken rows."""
    lines = read_text_lines(path, "no such file; set data.root and data.annotations", "save it as UTF-8 text")
    layout, read = _layout(path, lines)
    numbered = list(layout)
    captions: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    splits: dict[Any, str] = {}
    broken: list[Skipped] = []
    for number, line in numbered:
        try:
            row = read(line)
        except _BrokenRow as reason:
            broken.append(Skipped(path, f"line {number}: {reason}"))
            continue
        where = f"{path}: line {number}"
        exact = row.image == row.image.strip() or os.path.exists(folder / row.image)
        file = inside(folder, row.image if exact else row.image.strip(), where)
        image_id = prefix + file.relative_to(folder).as_posix()
        files[image_id] = file
        captions.setdefault(image_id, []).extend(row.captions)
        if row.split is not None:
            split = SPLIT_NAMED.get(row.split.lower())
            if split is None or splits.setdefault(image_id, split) != split:
                raise InputError(
                    f"{where}: split {row.split!r} of {row.image} is none of train, val, test, or differs from an "
                    f"earlier row; {FIX}"
                )
    if len(broken) > tolerated(len(numbered)):
        raise InputError(f"{path}: {broken[0].reason}, like {len(broken)} of the {len(numbered)} rows; {FIX}")
    if splits and len(splits) < len(files):
        raise InputError(f"{path}: some rows name a split, others do not; {FIX}")
    records = [Record(image_id, file, tuple(captions[image_id])) for image_id, file in files.items()]
    return records, splits, broken


def _layout(path: Path, lines: Sequence[str]) -> _Layout:
    """Recognise the layout of a table by its first line that is not blank."""
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise InputError(f"{path}: holds no rows; write one caption per line")
    start, first = filled[0]
    if first.lstrip().startswith("{"):
        return iter(filled), _json_row
    if _TOKEN.match(first):
        return iter(filled), _token_row
    if first.lstrip().startswith("["):
        raise InputError(f"{path}: is a JSON list; write one object per line, as in metadata.jsonl")
    for delimiter in _DELIMITERS:
        try:
            cells = next(csv.reader([first], delimiter=delimiter))
        except csv.Error:  # a field longer than csv takes
            continue
        header = [cell.strip().lower().replace(" ", "_") for cell in cells]
        image, caption = (next((name for name in names if name in header), None) for names in (_IMAGE, _CAPTION))
        if image is not None and caption is not None:
            place = header.index(image)
            rows = _delimited_rows(path, lines, start, delimiter, len(header), place)
            return rows, partial(_delimited_row, delimiter, header, place, header.index(caption))
    raise InputError(f"{path}: line {start}: {first[:60]!r} is an unknown layout; use {_KNOWN}")


def _json_row(line: str) -> _Row:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise _BrokenRow("not a JSON object")
    image, texts = (next((entry[key] for key in keys if key in entry), None) for keys in (_IMAGE, _CAPTION))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(image, str) or not image.strip():
        raise _BrokenRow("no file_name that is a text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _BrokenRow("no text that is a text or a list of texts")
    split = entry.get("split")
    return _Row(image, texts, split if isinstance(split, str) else None)


def _token_row(line: str) -> _Row:
    match = _TOKEN.match(line)
    if not match:
        raise _BrokenRow("not NAME#N<TAB>caption")
    return _Row(match[1], [line[match.end() :]])


def _delimited_rows(
    path: Path, lines: Sequence[str], start: int, delimiter: str, columns: int, image: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each row below the header, which is line `start` (from 1)."""
    reader = csv.reader((line + "\n" for line in lines[start:]), delimiter=delimiter)
    while True:
        begins = start + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}: line {begins + 1}: {error}; {FIX}") from None
        if not any(cell.strip() for cell in cells):
            continue
        for line in lines[begins + 1 : start + reader.line_num]:  # within quotation marks, which no row should be
            swallowed = line.split(delimiter)
            if len(swallowed) >= columns and _IMAGE_FILE.search(swallowed[image]):
                raise InputError(f"{path}: line {begins + 1}: a quotation mark is not closed; close or remove it")
        yield begins + 1, cells


def _delimited_row(delimiter: str, header: list[str], image: int, caption: int, cells: list[str]) -> _Row:
    """image, caption: their columns in `header`."""
    last = caption == len(header) - 1
    counted = last and header[caption - 1].endswith("number") and len(cells) >= caption
    numbered = _NUMBERED.match(cells[caption - 1]) if counted else None
    if numbered:
        cells = [*cells[: caption - 1], "", delimiter.join([numbered[1], *cells[caption:]])]
    elif len(cells) > len(header) and last:  # the delimiter in a caption without quotation marks
        cells = [*cells[:caption], delimiter.join(cells[caption:])]
    if not max(image, caption) < len(cells) <= len(header):
        raise _BrokenRow(f"{len(cells)} columns instead of {len(header)}")
    if not cells[image].strip():
        raise _BrokenRow("no name of an image")
    split = cells[header.index("split")].strip() if "split" in header[: len(cells)] else ""
    return _Row(cells[image], _texts(cells[caption]), split or None)


def _texts(cell: str) -> list[str]:
    """Return the captions of a cell: one, or a list as JSON, Python and NumPy (without commas) write it."""
    if cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            texts = ast.literal_eval(cell.strip())
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                tokens = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
                # One by one: Python joins strings that stand beside each other.
                return [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    return [cell]
