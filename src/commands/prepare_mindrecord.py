"""Write the images of every split into MindRecord shards: few large files in place of many small ones.

python -m src.commands.prepare_mindrecord --config FILE [--shards 4] [key=value ...]
The shards of a split go into <data.root>/mindrecord/<split>/ (data.mindrecord may name another folder), with the bytes
of the files unchanged. A split's folder appears when it is complete; one that holds the same images already is kept.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from src.commands.demo_data import make_demo_data
from src.config.load import config_parser, load_config
from src.data.digests import content_digests
from src.data.locate import read_records
from src.data.photographs import UnusableImage, decode, read_image_file
from src.data.records import Record
from src.data.shards import LISTING, PART, check_shards, mindrecord_reason, write_listing
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError
from src.runtime.progress import Progress
from src.runtime.threads import in_order

_ROWS = 256  # images handed to MindRecord at a time
_BEYOND_IMAGES = 48 * 2**20  # bytes of a shard beside images: a header of 16 MB and an incomplete page of 32 MB
_LARGEST = 32_000_000  # bytes of an image: a row must fit into one of MindRecord's pages of 32 MB
_SCHEMA = {"image_id": {"type": "string"}, "file": {"type": "string"}, "image": {"type": "bytes"}}


def main() -> None:
    """Parse the command line, and write the missing shards."""
    parser = config_parser("Write a dataset's images into MindRecord shards.")
    parser.add_argument("--shards", type=int, default=4, help="files for each split (default 4)")
    arguments = parser.parse_intermixed_args()
    if arguments.shards < 1:
        raise InputError(f"--shards {arguments.shards} must be at least 1")
    config = load_config(arguments.config, [*arguments.overrides, "data.mindrecord=null"])
    folder = load_config(arguments.config, arguments.overrides).data.mindrecord or "mindrecord"
    prepare_environment(convolutions=False)

    make_demo_data(config)
    records, skipped = read_records(config)
    for left_out in skipped:
        print(f"skipped: {left_out.file}: {left_out.reason}")
    root = Path(config.data.root)
    try:
        write_splits(root / folder, root, records, arguments.shards, config.data.workers, config.cache_folder)
    except (OSError, RuntimeError) as error:
        fix = "free disk space, or change data.root"
        raise InputError(f"{root / folder}: cannot be written ({mindrecord_reason(error)}); {fix}") from error


def write_splits(
    folder: Path, root: Path, records: dict[str, list[Record]], shards: int, threads: int, memory: Path
) -> None:
    """Write each split that `folder` lacks. Errors: InputError if the disk has no room for all of them.

    memory: see `content_digests`.
    """
    missing = {split: rows for split, rows in records.items() if not _is_there(folder / split, root, rows, memory)}
    for split in missing:
        if (folder / split).exists() and not (folder / split / LISTING).is_file():
            raise InputError(f"{folder / split} holds no shards and is not replaced: choose another data.mindrecord")
    folder.mkdir(parents=True, exist_ok=True)
    images = sum(record.file.stat().st_size for rows in missing.values() for record in rows)
    needed = images + len(missing) * shards * _BEYOND_IMAGES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: the images of {', '.join(missing)} need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; "
            "free disk space, or use fewer --shards"
        )
    for split, rows in records.items():
        if split in missing:
            _write_split(folder / split, root, rows, min(shards, len(rows)), threads)
        print(f"{folder / split}: {len(rows):,} images{'' if split in missing else ', already there'}", flush=True)


def _is_there(folder: Path, root: Path, records: Sequence[Record], memory: Path) -> bool:
    """Return whether a split is written completely, with the current bytes of these files."""
    try:
        held = {image for images in check_shards(folder, memory).shards.values() for image in images}
    except InputError:
        return False
    digests = content_digests([record.file for record in records], memory)
    return held == {
        (os.path.relpath(record.file, root), digest.tobytes().hex()) for record, digest in zip(records, digests)
    }


def _write_split(folder: Path, root: Path, records: Sequence[Record], shards: int, threads: int) -> None:
    """Write beside `folder`, then rename it: MindRecord's files cannot be renamed, but their folder can."""
    from mindspore.mindrecord import FileWriter

    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    writer = FileWriter(str(part / f"{folder.name}.mindrecord"), shard_num=shards)
    writer.add_schema(_SCHEMA)
    images = {}
    rows = in_order(_read, ((record,) for record in records), threads)
    with Progress(folder.name, len(records), "image") as bar:
        while some := list(islice(rows, _ROWS)):
            for row in some:
                name = row["file"] = os.path.relpath(row["file"], root)
                images[name] = (name, hashlib.sha256(row["image"]).hexdigest())
            writer.write_raw_data(some)
            bar.update(len(some))
    writer.commit()
    files = sorted(path for path in part.iterdir() if path.suffix != ".db")
    write_listing(part, {path.name: [images[name] for name in _names(path)] for path in files})
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(part, folder)


def _read(record: Record) -> dict:
    """Return the row of an image. Errors: InputError if it cannot be decoded, or is too large."""
    try:
        data = read_image_file(record.file)
        decode(data)
    except UnusableImage as reason:
        raise InputError(f"{record.file}: {reason}; delete it to have it skipped") from None
    if len(data) > _LARGEST:
        raise InputError(f"{record.file}: has more than {_LARGEST:,} bytes; delete it to have it skipped")
    return {"image_id": str(record.image_id), "file": record.file, "image": data}


def _names(shard: Path) -> list[str]:
    """Return the names of a shard's images in the order of its rows, which MindRecord chooses."""
    import mindspore.dataset as ds

    rows = ds.MindDataset([str(shard)], ["file"], shuffle=False).create_tuple_iterator(num_epochs=1, output_numpy=True)
    return [str(name) for (name,) in rows]


if __name__ == "__main__":
    run_program(main)
