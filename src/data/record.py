"""One captioned image as every reader of annotations returns it, and the helpers that the readers share."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from src.runtime.errors import InputError

ImageId = int | str
Value = TypeVar("Value")

SPLITS = ("train", "val", "test")
# Names of the splits in files: Hugging Face has validation, Flickr8k dev, Karpathy's COCO restval for more training.
_SPELLINGS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
SPLIT_NAMED = {word: split for split, words in _SPELLINGS.items() for word in words} | {"restval": "train"}
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of surrogate pairs
FIX = "fix the file or download it again"


@dataclass(frozen=True)
class Record:
    """One image and its ground truths, each of them one line that is not blank."""

    image_id: ImageId
    file: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A skipped image, caption or row of a table."""

    file: Path
    reason: str


def tolerated(images: int) -> float:
    """Return how many of a split's images may be unusable: 5 %, in small splits 3, but never more than half."""
    return max(images * 0.05, min(3, images / 2))


def split_files(root: Path, pattern: str, splits: Sequence[str]) -> Iterator[tuple[str, Path, str]]:
    """Yield each split, its file by a pattern with {split}, and its spelling there; a missing test is skipped."""
    for split in splits:
        paths = {word: root / pattern.replace("{split}", word) for word in _SPELLINGS[split]}
        word = next((word for word, path in paths.items() if path.is_file()), split)
        if split != "test" or paths[word].exists():
            yield split, paths[word], word


def inside(folder: Path, name: str, where: str) -> Path:
    """Return folder/name. Raises InputError if that leads out of the folder, or no file can have the name."""
    if _NOT_IN_NAMES.search(name):
        raise InputError(f"{where}: file name {name!r} holds a control character; {FIX}")
    base = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(os.path.join(base, "")):
        raise InputError(f"{where}: file name {name!r} does not stay within {folder}; set data.images, or {FIX}")
    return folder / os.path.relpath(path, base)


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode a text: JSON can hold half of a surrogate pair, which UTF-8 cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def with_known_ids(
    values: Mapping[ImageId, Value], known: Collection[ImageId], source: str | Path
) -> dict[ImageId, Value]:
    """Return `values` by the image ids of a data set: "7" becomes 7 if only that is known, and 7 becomes "7"."""
    ids = set(known)
    result: dict[ImageId, Value] = {}
    for image_id, value in values.items():
        text = str(image_id)
        is_number = text.isascii() and text.isdecimal() and len(text) < 20
        other = int(text) if is_number and isinstance(image_id, str) else text
        found = other if image_id not in ids and other in ids else image_id
        if found in result:
            raise InputError(f"{source}: image_id {image_id!r} appears as a number and as a text; keep one")
        result[found] = value
    return result
