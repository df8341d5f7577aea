"""Lists of file names, one a line, which replace the splits of a data set."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from src.data.record import Record, one_line, split_file
from src.runtime.errors import InputError
from src.runtime.files import text_lines


def apply_lists(
    root: Path, lists: str, splits: Mapping[str, Sequence[Record]], wanted: Sequence[str]
) -> dict[str, list[Record]]:
    """The records that the list of each split names, in the order of the lists; a test split may have none.

    Errors: InputError naming a list, and its line that names no image or one that has been named.
    """
    pool: defaultdict[str, list[Record]] = defaultdict(list)
    for record in (record for records in splits.values() for record in records):
        for name in {record.file.name, record.file.stem}:
            pool[name].append(record)
    listed: dict[str, list[Record]] = {}
    seen: set[Path] = set()
    for split in wanted:
        path, _ = split_file(root, lists if "{split}" in lists else lists + "_{split}.txt", split)
        try:
            lines = text_lines(path)
        except FileNotFoundError:
            if split == "test":
                continue
            raise InputError(f"{path}: no such list; data.lists={lists} needs one for train and val") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); write one file name per line") from None
        listed[split] = []
        for line in filter(str.strip, lines):
            found = _named(line, pool) or _named(line.strip(), pool)
            if not found:
                raise InputError(
                    f"{path}: {line.strip()!r} is not in data.annotations; remove the line or set the right file"
                )
            if len(found) > 1 or found[0].file in seen:
                raise InputError(
                    f"{path}: {line.strip()!r} names two images, or stands in a list already; remove the line"
                )
            seen.add(found[0].file)
            listed[split].append(found[0])
    return listed


def _named(line: str, pool: dict[str, list[Record]]) -> list[Record]:
    """The images that a line of a list names, with its folders or without, with its suffix or without."""
    *folders, name = PurePosixPath(line).parts or ("",)
    same = [record for record in pool.get(name, ()) if list(record.file.parts[-1 - len(folders) : -1]) == folders]
    return [record for record in same if record.file.name == name] or same
