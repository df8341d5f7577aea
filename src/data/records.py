"""Readers of captioned images: COCO captions JSON, Karpathy's JSON and tables, with or without lists of file names.

Input is untrusted: a problem with a whole file raises InputError, a single unusable image is skipped with the reason.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

from src.config.schema import DataConfig
from src.data.photographs import scan_images
from src.data.record import FIX, SPLIT_NAMED, SPLITS, ImageId, Record, Skipped, inside, is_utf8, split_files, tolerated
from src.data.shards import Shards
from src.data.tables import read_table
from src.runtime.environment import quiet_stdout
from src.runtime.errors import InputError, one_line
from src.runtime.files import read_text_lines

Splits = dict[str, list[Record]]
_ID = (int, str)


def load_records(data: DataConfig) -> tuple[Splits, list[Skipped]]:
    """Read train, val and, if there is one, test: records by split (none is empty), and what was skipped.

    Raises InputError naming the file and key, or the split with too many unusable images.
    """
    root = Path(data.root)
    splits, skipped = read_annotations(data)
    scan = scan_images if data.mindrecord is None else Shards(root / data.mindrecord, root).scan
    for split, records in splits.items():
        records = with_captions(split, records, skipped)
        reasons = scan(record.file for record in records)
        absent = next(iter(reasons.values()), "").startswith(("missing", "not in"))
        fix = f"check data.root={root} and data.images" if absent else "restore or convert them"
        splits[split] = _without(split, records, [reasons.get(record.file) for record in records], fix, skipped)
    return splits, skipped


def read_annotations(
    data: DataConfig, wanted: Sequence[str] = SPLITS, needed: Sequence[str] = SPLITS[:2]
) -> tuple[Splits, list[Skipped]]:
    """Read the splits `wanted` without looking at image files, records in the order of the annotations or lists.

    needed: splits that must be there. A test split without a caption counts as missing.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder; set data.root to the folder of the data set")
    splits, skipped = _READERS[data.format](data, wanted if data.lists is None else SPLITS)
    if data.lists is not None:
        splits = _apply_lists(root, data.lists, splits, wanted)
    _check_ids(splits)
    splits = {split: splits[split] for split in wanted if splits.get(split)}
    if not any(record.captions for record in splits.get("test", ())):
        splits.pop("test", None)
    for split in needed:
        if split not in splits:
            captions = " with captions" if split == "test" else ""
            raise InputError(f"{root}: split {split!r} has no images{captions}; {FIX}")
    return splits, skipped


def _read_coco(data: DataConfig, wanted: Sequence[str]) -> tuple[Splits, list[Skipped]]:
    pattern = data.annotations
    if "{split}" not in pattern and (data.lists is None or "{split}" in data.images):
        raise InputError(f"data.annotations={pattern!r} needs {{split}} in its name, or set data.lists")
    splits: Splits = {}
    wanted = wanted if "{split}" in pattern else SPLITS[:1]
    for split, path, word in split_files(Path(data.root), pattern, wanted):
        folder = Path(data.root, data.images.replace("{split}", word))
        content = _load_json(path)
        if split == "test" and "annotations" not in content:  # image_info_test2017.json
            continue
        files: dict[ImageId, Path] = {}
        for place, entry in enumerate(_field(content, "images", (list,), path)):
            where = f"{path}: images[{place}]"
            image_id = _field(entry, "id", _ID, where)
            if image_id in files:
                raise InputError(f"{where}: id {image_id} occurs twice; {FIX}")
            files[image_id] = inside(folder, _field(entry, "file_name", (str,), where), where)
        for place, entry in enumerate(_field(content, "annotations", (list,), path)):
            where = f"{path}: annotations[{place}]"
            _field(entry, "id", _ID, where)
            _field(entry, "caption", (str,), where)
            if _field(entry, "image_id", _ID, where) not in files:
                raise InputError(f"{where}: image_id {entry['image_id']!r} is not among the images; {FIX}")
        coco = COCO()
        # Only the checked keys: createIndex also walks categories, which captions do not have.
        coco.dataset = {key: content[key] for key in ("images", "annotations")}
        with quiet_stdout():
            coco.createIndex()
        splits[split] = [
            Record(i, file, tuple(entry["caption"] for entry in coco.imgToAnns.get(i, ()))) for i, file in files.items()
        ]
    return splits, []


def _read_karpathy(data: DataConfig, wanted: Sequence[str]) -> tuple[Splits, list[Skipped]]:
    path, folder = Path(data.root, data.annotations), Path(data.root, data.images)
    splits: Splits = {split: [] for split in SPLITS}
    seen = set()
    for place, entry in enumerate(_field(_load_json(path), "images", (list,), path)):
        where = f"{path}: images[{place}]"
        split = _field(entry, "split", (str,), where)
        if split not in SPLIT_NAMED:
            raise InputError(f"{where}: split {split!r} is none of train, restval, val, test; {FIX}")
        image_id = _field(entry, "cocoid" if "cocoid" in entry else "imgid", _ID, where)
        if image_id in seen:
            raise InputError(f"{where}: image id {image_id} occurs twice; {FIX}")
        seen.add(image_id)
        name = _field(entry, "filename", (str,), where)
        if "filepath" in entry:
            name = f"{_field(entry, 'filepath', (str,), where)}/{name}"
        sentences = enumerate(_field(entry, "sentences", (list,), where))
        captions = tuple(_field(sentence, "raw", (str,), f"{where}.sentences[{i}]") for i, sentence in sentences)
        splits[SPLIT_NAMED[split]].append(Record(image_id, inside(folder, name, where), captions))
    return splits, []


_READERS: dict[str, Callable[[DataConfig, Sequence[str]], tuple[Splits, list[Skipped]]]] = {
    "coco": _read_coco,
    "karpathy": _read_karpathy,
    "table": read_table,
}


def _load_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises InputError naming the file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; set data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        fix = FIX if path.suffix == ".json" else "set data.format=table if it is a table"
        raise InputError(f"{path}: not readable as JSON ({one_line(error)}); {fix}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not an object with images; {FIX}")
    return data


def _field(entry: Any, key: str, kinds: tuple[type, ...], where: Any) -> Any:
    """Return entry[key], which must be exactly of one of these types (so True is not an int). Raises InputError."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{where}: key {key!r} is missing; {FIX}")
    if type(entry[key]) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{where}: key {key!r} is a {type(entry[key]).__name__}, not a {wanted}; {FIX}")
    return entry[key]


def _apply_lists(
    root: Path, lists: str, splits: Mapping[str, Sequence[Record]], wanted: Sequence[str]
) -> dict[str, list[Record]]:
    """Return the records that the list of each split names, in the order of the lists; test may have no list."""
    pool: defaultdict[str, list[Record]] = defaultdict(list)
    for record in (record for records in splits.values() for record in records):
        for name in {record.file.name, record.file.stem}:
            pool[name].append(record)
    listed: dict[str, list[Record]] = {}
    seen: set[Path] = set()
    missing = f"no such list; data.lists={lists} needs one for train and val"
    for split, path, _ in split_files(root, lists if "{split}" in lists else lists + "_{split}.txt", wanted):
        listed[split] = []
        for line in filter(str.strip, read_text_lines(path, missing, "write one file name per line")):
            found = _named(line, pool) or _named(line.strip(), pool)
            where = f"{path}: {line.strip()!r}"
            if not found:
                raise InputError(f"{where} is not in data.annotations; remove the line or set another data.annotations")
            if len(found) > 1 or found[0].file in seen:
                raise InputError(f"{where} names two images or appears in a list already; remove the line")
            seen.add(found[0].file)
            listed[split].append(found[0])
    return listed


def _named(line: str, pool: dict[str, list[Record]]) -> list[Record]:
    """Find the images that a line names, with or without folders, with or without suffix."""
    *folders, name = PurePosixPath(line).parts or ("",)
    same = [record for record in pool.get(name, ()) if list(record.file.parts[-1 - len(folders) : -1]) == folders]
    return [record for record in same if record.file.name == name] or same


def _check_ids(splits: Splits) -> None:
    """Ground truths are looked up by image id in any split; an image in two splits would be trained on and tested."""
    owners: dict[ImageId, tuple[str, Record]] = {}
    for split, records in splits.items():
        for record in records:
            home, owner = owners.setdefault(record.image_id, (split, record))
            if owner.file != record.file:
                raise InputError(f"{record.file}: its id {record.image_id} in {split} belongs to {owner.file}; {FIX}")
            if home != split:
                raise InputError(f"{record.file}: is in the splits {home} and {split}; keep an image in one of them")
    kinds = {type(record.image_id): record for _, record in reversed(owners.values())}
    if len(kinds) > 1:
        number, text = kinds[int], kinds[str]
        raise InputError(
            f"{number.file} has the number {number.image_id} as image id, {text.file} the text {text.image_id!r}: "
            "use ids of one kind"
        )


def with_captions(split: str, records: list[Record], skipped: list[Skipped]) -> list[Record]:
    """Collapse blanks in captions; drop blank captions, and images without another."""
    kept = []
    for record in records:
        # One line each: PTB's tokenizer reads one caption per line.
        lines = tuple(" ".join(caption.split()) for caption in record.captions)
        # Bare punctuation tokenises to nothing; JSON may hold a lone surrogate, which cannot be written as UTF-8.
        good = tuple(line for line in lines if any(map(str.isalnum, line)) and is_utf8(line))
        kept.append(replace(record, captions=good))
        if good:
            skipped += [Skipped(record.file, "blank caption left out")] * (len(lines) - len(good))
    reasons = [None if record.captions else "no captions" for record in kept]
    return _without(split, kept, reasons, "fix data.annotations", skipped)


def _without(
    split: str, records: list[Record], reasons: Sequence[str | None], fix: str, skipped: list[Skipped]
) -> list[Record]:
    """Skip the records with a reason. Raises InputError that ends with `fix` if these are too many."""
    bad = [Skipped(record.file, reason) for record, reason in zip(records, reasons) if reason]
    if len(bad) > tolerated(len(records)):
        first, share = bad[0], f"{len(bad)} of the {len(records)} images of split {split!r}"
        raise InputError(f"{first.file}: {first.reason}, like {share}; {fix}")
    skipped += bad
    return [record for record, reason in zip(records, reasons) if not reason]
