"""Readers of captioned images: COCO captions JSON, Karpathy's JSON and tables, with or without lists of file names.

All of it is untrusted input: what is wrong with a whole file raises InputError, single images that cannot be used
are left out and returned with the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pycocotools.coco import COCO

from src.data.image_check import scan_images
from src.data.lists import apply_lists
from src.data.record import (
    MEND,
    SPLIT_NAMED,
    SPLITS,
    ImageId,
    Record,
    Skipped,
    field,
    inside,
    is_utf8,
    load_json,
    split_file,
    tolerated,
)
from src.data.shards import Shards
from src.data.tables import read_table
from src.runtime.environment import quiet_stdout
from src.runtime.errors import InputError

Splits = dict[str, list[Record]]


def load_records(
    *, format: str, root: Path, annotations: str, images: str, lists: str | None, mindrecord: str | None = None
) -> tuple[Splits, list[Skipped]]:
    """Read the splits train, val and, where there is one, test, without what cannot be used.

    Args:
        format, root, annotations, images, lists: as `read_annotations` takes them.
        mindrecord: None, or a folder of shards in root that stand in for the image files (src.data.shards).
    Returns:
        The records of each split (none is empty; one image id is one file), and what was left out.
    Raises:
        InputError: names the file and key, or the split of which more than 5 % cannot be used.
    """
    splits, skipped = read_annotations(format, root, annotations, images, lists)
    scan = scan_images if mindrecord is None else Shards(root / mindrecord, root).scan
    for split, records in splits.items():
        splits[split] = _with_files(split, with_captions(split, records, skipped), root, scan, skipped)
    return splits, skipped


def read_annotations(
    format: str,
    root: Path,
    annotations: str,
    images: str,
    lists: str | None,
    wanted: Sequence[str] = SPLITS,
    needed: Sequence[str] = SPLITS[:2],
) -> tuple[Splits, list[Skipped]]:
    """The records of the splits `wanted`, in the order of the files; image files are not looked at.

    Args:
        format: "coco", "karpathy" or "table" (src.data.tables).
        root: the folder that the next three are relative to.
        annotations: a file; for "coco" a pattern with {split}, or one file if `lists` is given; "table" takes both.
        images: folder of the images; it may hold {split} where `annotations` does.
        lists: None, or what replaces the splits: a pattern with {split}, or a prefix of {lists}_{split}.txt.
        needed: splits that must be there. A test split without a caption counts as none.
    Returns:
        The records of each split that is there, and what was left out.
    Raises:
        InputError: names the file and key.
    """
    if format not in _READERS:
        raise InputError(f"data.format={format!r} is unknown; set it to one of {', '.join(_READERS)}")
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder; set data.root to the folder of the data set")
    pooled = lists is not None
    splits, skipped = _READERS[format](root, annotations, images, SPLITS if pooled else wanted, pooled)
    if lists is not None:
        splits = apply_lists(root, lists, splits, wanted)
    _check_ids(splits)
    splits = {split: splits[split] for split in wanted if splits.get(split)}
    if not any(record.captions for record in splits.get("test", ())):
        splits.pop("test", None)
    for split in needed:
        if split not in splits:
            captions = " with captions" if split == "test" else ""
            raise InputError(f"{root}: split {split!r} has no images{captions}; {MEND}")
    return splits, skipped


def _read_coco(
    root: Path, annotations: str, images: str, wanted: Sequence[str], pooled: bool
) -> tuple[Splits, list[Skipped]]:
    if "{split}" not in annotations and (not pooled or "{split}" in images):
        raise InputError(f"data.annotations={annotations!r} needs {{split}} in its name, or set data.lists")
    splits: Splits = {}
    for split in wanted if "{split}" in annotations else SPLITS[:1]:
        path, word = split_file(root, annotations, split)
        folder = root / images.replace("{split}", word)
        if split == "test" and not path.exists():
            continue
        data = load_json(path)
        if split == "test" and "annotations" not in data:  # image_info_test2017.json
            continue
        entries = field(data, "images", list, path)
        names: dict[ImageId, Path] = {}
        for place, entry in enumerate(entries):
            where = f"{path}: images[{place}]"
            image_id = field(entry, "id", (int, str), where)
            if image_id in names:
                raise InputError(f"{where}: id {image_id} occurs twice; {MEND}")
            names[image_id] = inside(folder, field(entry, "file_name", str, where), where)
        for place, entry in enumerate(field(data, "annotations", list, path)):
            where = f"{path}: annotations[{place}]"
            field(entry, "id", (int, str), where)
            field(entry, "caption", str, where)
            if field(entry, "image_id", (int, str), where) not in names:
                raise InputError(f"{where}: image_id {entry['image_id']!r} is not among the images; {MEND}")
        coco = COCO()
        # Only what was checked: createIndex also walks categories, which captions do not have.
        coco.dataset = {"images": entries, "annotations": data["annotations"]}
        with quiet_stdout():
            coco.createIndex()
        captions = {i: tuple(entry["caption"] for entry in coco.imgToAnns.get(i, ())) for i in names}
        splits[split] = [Record(i, file, captions[i]) for i, file in names.items()]
    return splits, []


def _read_karpathy(
    root: Path, annotations: str, images: str, wanted: Sequence[str], pooled: bool
) -> tuple[Splits, list[Skipped]]:
    path = root / annotations
    splits: Splits = {split: [] for split in SPLITS}
    seen = set()
    for place, entry in enumerate(field(load_json(path), "images", list, path)):
        where = f"{path}: images[{place}]"
        split = field(entry, "split", str, where)
        if split not in SPLIT_NAMED:
            raise InputError(f"{where}: split {split!r} is none of train, restval, val, test; {MEND}")
        image_id = field(entry, "cocoid" if "cocoid" in entry else "imgid", (int, str), where)
        if image_id in seen:
            raise InputError(f"{where}: image id {image_id} occurs twice; {MEND}")
        seen.add(image_id)
        name = field(entry, "filename", str, where)
        if "filepath" in entry:
            name = f"{field(entry, 'filepath', str, where)}/{name}"
        sentences = enumerate(field(entry, "sentences", list, where))
        captions = tuple(field(sentence, "raw", str, f"{where}.sentences[{i}]") for i, sentence in sentences)
        splits[SPLIT_NAMED[split]].append(Record(image_id, inside(root / images, name, where), captions))
    return splits, []


_READERS: dict[str, Callable[[Path, str, str, Sequence[str], bool], tuple[Splits, list[Skipped]]]] = {
    "coco": _read_coco,
    "karpathy": _read_karpathy,
    "table": read_table,
}


def _check_ids(splits: Splits) -> None:
    """Ground truths are looked up by image id, whatever the split; an image in two would be tested after training."""
    owner: dict[ImageId, Record] = {}
    home: dict[ImageId, str] = {}
    kinds: dict[type, Record] = {}
    for split, records in splits.items():
        for record in records:
            if owner.setdefault(record.image_id, record).file != record.file:
                other = owner[record.image_id].file
                raise InputError(f"{record.file}: split {split!r} gives it id {record.image_id} of {other}; {MEND}")
            if home.setdefault(record.image_id, split) != split:
                raise InputError(
                    f"{record.file}: is in the splits {home[record.image_id]} and {split}; keep an image in one of them"
                )
            kinds.setdefault(type(record.image_id), record)
    if len(kinds) > 1:
        number, text = kinds[int], kinds[str]
        raise InputError(
            f"{number.file} has the number {number.image_id} as image id, {text.file} the text "
            f"{text.image_id!r}: make all ids of one kind"
        )


def with_captions(split: str, records: list[Record], skipped: list[Skipped]) -> list[Record]:
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
    if len(dropped) > tolerated(len(records)):
        raise InputError(
            f"{dropped[0].file}: no captions in data.annotations, like {len(dropped)} of the {len(records)} images "
            f"of split {split!r}; {MEND}"
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
    if count > tolerated(len(records)):
        file, reason = next(iter(bad.items()))
        mend = (
            f"probably data.root={root} or data.images is wrong"
            if reason.startswith(("missing", "not in"))
            else "restore or convert them"
        )
        raise InputError(f"{file}: {reason}, like {count} of the {len(records)} images of split {split!r}; {mend}")
    skipped += [Skipped(file, reason) for file, reason in bad.items()]
    return [record for record in records if record.file not in bad]


def _has_words(caption: str) -> bool:
    # Bare punctuation tokenises to nothing; a lone surrogate is legal in JSON, but nothing can write it as UTF-8.
    return any(c.isalnum() for c in caption) and is_utf8(caption)
