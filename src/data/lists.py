"""Lists of file names, one per line, that replace the splits of a data set."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from src.data.record import Record, read_lines, split_files
from src.runtime.errors import InputError


def apply_lists(
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
        for line in filter(str.strip, read_lines(path, missing, "write one file name per line")):
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
