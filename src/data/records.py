"""Readers of captioned images: COCO captions JSON and Karpathy's JSON, with or without lists of file names.

All of it is untrusted input: what is wrong with a whole file raises InputError, single images that cannot be used
are left out and returned with the reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

from src.data.image_check import scan_images
from src.data.shards import Shards
from src.environment import quiet_stdout
from src.errors import InputError

SPLITS = ("train", "val", "test")
_MEND = "correct the file, or fetch it again from its source"


@dataclass(frozen=True)
class Record:
    """One image and its ground truths, each of them one line that is not blank."""

    image_id: int
    file: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """An image, or one caption of it, that was left out."""

    file: Path
    reason: str


def load_records(
    *, format: str, root: Path, annotations: str, images: str, lists: str | None, mindrecord: str | None = None
) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """Read the splits train, val and test, in the order of the files, without what cannot be used.

    Args:
        format: "coco" or "karpathy".
        root: the folder that the next three are relative to.
        annotations: JSON file; for "coco" a pattern with {split}, or one file if `lists` is given.
        images: folder of the images; for "coco" it may hold {split}.
        lists: None, or a prefix: root/{lists}_{split}.txt, one file name per line, replace the splits.
        mindrecord: None, or a folder of shards in root that stand in for the image files (src.data.shards).
    Returns:
        The records of each split (none is empty; one image id is one file), and what was left out.
    Raises:
        InputError: names the file and key, or the split of which more than 5 % cannot be used.
    """
    if format not in _READERS:
        raise InputError(f"data.format={format!r} is unknown; set it to one of {', '.join(_READERS)}")
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder; set data.root to the folder of the data set")
    splits = _READERS[format](root, annotations, images, lists)
    if lists is not None:
        splits = _apply_lists(root, lists, splits)
    _check_ids(splits)
    scan = scan_images if mindrecord is None else Shards(root / mindrecord, root).scan
    skipped: list[Skipped] = []
    for split, records in splits.items():
        if not records:
            raise InputError(f"{root}: split {split!r} has no images; {_MEND}")
        records = _with_captions(split, records, skipped)
        splits[split] = _with_files(split, records, root, scan, skipped)
    return splits, skipped


def _read_coco(root: Path, annotations: str, images: str, lists: str | None) -> dict[str, list[Record]]:
    if "{split}" not in annotations and (lists is None or "{split}" in images):
        raise InputError(f"data.annotations={annotations!r} needs {{split}} in its name, or set data.lists")
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for split in SPLITS if "{split}" in annotations else SPLITS[:1]:
        path = root / annotations.replace("{split}", split)
        folder = root / images.replace("{split}", split)
        data = _load_json(path)
        entries = _field(data, "images", list, path)
        names = {}
        for place, entry in enumerate(entries):
            where = f"{path}: images[{place}]"
            image_id = _field(entry, "id", int, where)
            if image_id in names:
                raise InputError(f"{where}: id {image_id} occurs twice; {_MEND}")
            names[image_id] = _inside(folder, _field(entry, "file_name", str, where), where)
        for place, entry in enumerate(_field(data, "annotations", list, path)):
            where = f"{path}: annotations[{place}]"
            _field(entry, "id", int, where)
            _field(entry, "caption", str, where)
            if _field(entry, "image_id", int, where) not in names:
                raise InputError(f"{where}: image_id {entry['image_id']} is not among the images; {_MEND}")
        coco = COCO()
        # Only what was checked: createIndex also walks categories, which captions do not have.
        coco.dataset = {"images": entries, "annotations": data["annotations"]}
        with quiet_stdout():
            coco.createIndex()
        captions = {i: tuple(entry["caption"] for entry in coco.imgToAnns.get(i, ())) for i in names}
        splits[split] = [Record(i, file, captions[i]) for i, file in names.items()]
    return splits


def _read_karpathy(root: Path, annotations: str, images: str, lists: str | None) -> dict[str, list[Record]]:
    path = root / annotations
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    seen = set()
    for place, entry in enumerate(_field(_load_json(path), "images", list, path)):
        where = f"{path}: images[{place}]"
        split = _field(entry, "split", str, where)
        split = "train" if split == "restval" else split
        if split not in splits:
            raise InputError(f"{where}: split {split!r} is none of train, restval, val, test; {_MEND}")
        image_id = _field(entry, "cocoid" if "cocoid" in entry else "imgid", int, where)
        if image_id in seen:
            raise InputError(f"{where}: image id {image_id} occurs twice; {_MEND}")
        seen.add(image_id)
        name = _field(entry, "filename", str, where)
        if "filepath" in entry:
            name = f"{_field(entry, 'filepath', str, where)}/{name}"
        sentences = enumerate(_field(entry, "sentences", list, where))
        captions = tuple(_field(sentence, "raw", str, f"{where}.sentences[{i}]") for i, sentence in sentences)
        splits[split].append(Record(image_id, _inside(root / images, name, where), captions))
    return splits


_READERS = {"coco": _read_coco, "karpathy": _read_karpathy}


def _apply_lists(root: Path, lists: str, splits: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The records that root/{lists}_{split}.txt name, in the order of the lists."""
    pool = [record for records in splits.values() for record in records]
    by_name = {record.file.name: record for record in pool}
    shared = {name for name, count in Counter(record.file.name for record in pool).items() if count > 1}
    listed = {}
    seen: set[str] = set()
    for split in SPLITS:
        path = root / f"{lists}_{split}.txt"
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise InputError(f"{path}: no such list; data.lists={lists} needs one for train, val and test") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({_one_line(error)}); write one file name per line") from None
        for name in names:
            if name not in by_name:
                raise InputError(f"{path}: {name!r} is not in data.annotations; remove the line or set the right JSON")
            if name in seen or name in shared:
                raise InputError(f"{path}: {name!r} names two images, or stands in a list already; remove the line")
            seen.add(name)
        listed[split] = [by_name[name] for name in names]
    return listed


def _check_ids(splits: dict[str, list[Record]]) -> None:
    """Ground truths are looked up by image id, whatever the split."""
    owner: dict[int, Record] = {}
    for split, records in splits.items():
        for record in records:
            if owner.setdefault(record.image_id, record).file != record.file:
                other = owner[record.image_id].file
                raise InputError(f"{record.file}: split {split!r} gives it id {record.image_id} of {other}; {_MEND}")


def _with_captions(split: str, records: list[Record], skipped: list[Skipped]) -> list[Record]:
    """Collapse the blanks of the captions; drop blank captions, and images that have no other."""
    kept, dropped = [], []
    for record in records:
        # One line each: PTB's tokenizer reads one caption per line.
        lines = tuple(" ".join(caption.split()) for caption in record.captions)
        good = tuple(line for line in lines if _has_words(line))
        if good:
            skipped += [Skipped(record.file, "blank caption left out")] * (len(lines) - len(good))
            kept.append(replace(record, captions=good))
        else:
            dropped.append(Skipped(record.file, "no captions"))
    if len(dropped) > _tolerated(len(records)):
        raise InputError(
            f"{dropped[0].file}: no captions in data.annotations, like {len(dropped)} of the {len(records)} images "
            f"of split {split!r}; {_MEND}"
        )
    skipped += dropped
    return kept


def _with_files(
    split: str,
    records: list[Record],
    root: Path,
    scan: Callable[[Iterable[Path]], dict[Path, str]],
    skipped: list[Skipped],
) -> list[Record]:
    """Drop the records whose image file is missing, empty, truncated or too large."""
    bad = scan(record.file for record in records)
    count = sum(record.file in bad for record in records)
    if count > _tolerated(len(records)):
        file, reason = next(iter(bad.items()))
        mend = (
            f"probably data.root={root} or data.images is wrong"
            if reason.startswith(("missing", "not in"))
            else "restore or convert them"
        )
        raise InputError(f"{file}: {reason}, like {count} of the {len(records)} images of split {split!r}; {mend}")
    skipped += [Skipped(file, reason) for file, reason in bad.items()]
    return [record for record in records if record.file not in bad]


def _tolerated(images: int) -> float:
    """How many of a split may be unusable: 5 %, in small splits 3, but never more than half."""
    return max(images * 0.05, min(3, images / 2))


def _has_words(caption: str) -> bool:
    # Bare punctuation tokenises to nothing; a lone surrogate is legal in JSON, but nothing can write it as UTF-8.
    return any(c.isalnum() for c in caption) and not any("\ud800" <= c <= "\udfff" for c in caption)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; set data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({_one_line(error)}); {_MEND}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not an object with images; {_MEND}")
    return data


def _field(entry: Any, key: str, kind: type, where: Any) -> Any:
    """entry[key], which must be exactly of that type (so True is no int)."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{where}: key {key!r} is missing; {_MEND}")
    if type(entry[key]) is not kind:
        raise InputError(f"{where}: key {key!r} is a {type(entry[key]).__name__}, not a {kind.__name__}; {_MEND}")
    return entry[key]


def _inside(folder: Path, name: str, where: str) -> Path:
    """folder/name, if that cannot leave the folder."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or not name.isprintable():
        raise InputError(f"{where}: file name {name!r} does not stay within {folder}; {_MEND}")
    return folder / path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
