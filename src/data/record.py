"""One captioned image, as every reader of annotations gives it, and what the readers share."""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from src.runtime.errors import InputError

ImageId = int | str
Value = TypeVar("Value")

SPLITS = ("train", "val", "test")
# What files call the splits: Hugging Face says validation, Flickr8k dev, Karpathy's COCO restval for more training.
_SPELLINGS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
SPLIT_NAMED = {word: split for split, words in _SPELLINGS.items() for word in words} | {"restval": "train"}
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of surrogate pairs
MEND = "correct the file, or fetch it again from its source"


@dataclass(frozen=True)
class Record:
    """One image and its ground truths, each of them one line that is not blank."""

    image_id: ImageId
    file: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """An image, one caption of it, or a row of a table, that was left out."""

    file: Path
    reason: str


def tolerated(images: int) -> float:
    """How many of a split may be unusable: 5 %, in small splits 3, but never more than half."""
    return max(images * 0.05, min(3, images / 2))


def split_file(root: Path, pattern: str, split: str) -> tuple[Path, str]:
    """The file that a pattern with {split} names for a split, and the word in place of {split}."""
    words = _SPELLINGS[split]
    word = next((word for word in words if (root / pattern.replace("{split}", word)).is_file()), split)
    return root / pattern.replace("{split}", word), word


def inside(folder: Path, name: str, where: str) -> Path:
    """folder/name. Errors: InputError where that leads out of the folder, or no file can have the name."""
    if _NOT_IN_NAMES.search(name):
        raise InputError(f"{where}: file name {name!r} holds a control character; {MEND}")
    base = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(os.path.join(base, "")):
        raise InputError(f"{where}: file name {name!r} does not stay within {folder}; set data.images, or {MEND}")
    return folder / os.path.relpath(path, base)


def is_utf8(text: str) -> bool:
    """Whether a text can be written and sent: JSON can hold half of a surrogate pair, which UTF-8 cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def load_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Errors: InputError naming the file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; set data.root and data.annotations") from None
    except (OSError, ValueError, RecursionError) as error:
        mend = MEND if path.suffix == ".json" else "set data.format=table, if it is a table"
        raise InputError(f"{path}: not readable as JSON ({one_line(error)}); {mend}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, not an object with images; {MEND}")
    return data


def field(entry: Any, key: str, kinds: type | tuple[type, ...], where: Any) -> Any:
    """entry[key], which must be exactly of one of these types (so True is no int). Errors: InputError."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{where}: key {key!r} is missing; {MEND}")
    if type(entry[key]) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{where}: key {key!r} is a {type(entry[key]).__name__}, not a {wanted}; {MEND}")
    return entry[key]


def one_line(error: Exception) -> str:
    """The beginning of a message, without line breaks."""
    return " ".join(str(error).split())[:120]


def with_known_ids(
    values: Mapping[ImageId, Value], known: Collection[ImageId], source: str | Path
) -> dict[ImageId, Value]:
    """`values` by the image ids of a data set: "7" is 7 where only that is known, and 7 is "7". Others stay.

    Errors: InputError naming `source` where two keys are the same image.
    """
    ids = set(known)
    result: dict[ImageId, Value] = {}
    for image_id, value in values.items():
        found = image_id
        if found not in ids:
            other = _number(image_id) if isinstance(image_id, str) else str(image_id)
            found = other if other in ids else found
        if found in result:
            raise InputError(f"{source}: image_id {image_id!r} stands there as a number and as a text; keep one")
        result[found] = value
    return result


def _number(text: str) -> ImageId:
    """The number that a text is; else the text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else text
