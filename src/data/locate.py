"""Where the records and images of a data set are, as the section `data` says; without MindSpore."""

from collections.abc import Sequence
from pathlib import Path

from src.config.schema import Config
from src.data.image_files import ImageFiles
from src.data.records import Record, Skipped, load_records, read_annotations, with_captions
from src.data.shards import ShardImages, Shards
from src.runtime.environment import say_once
from src.runtime.errors import InputError


def read_records(config: Config) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """The records of each split that `data` names, and what was skipped.

    Errors: InputError naming the file or key.
    """
    data = config.data
    _check_demo(config)
    return load_records(
        format=data.format,
        root=Path(data.root),
        annotations=data.annotations,
        images=data.images,
        lists=data.lists,
        mindrecord=data.mindrecord,
    )


def read_split(config: Config, split: str) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """The records of one split alone, and what was skipped; no image file and no other split needs to be there."""
    data = config.data
    _check_demo(config)
    files = (Path(data.root), data.annotations, data.images, data.lists)
    splits, skipped = read_annotations(data.format, *files, wanted=(split,), needed=(split,))
    return {split: with_captions(split, splits[split], skipped)}, skipped


def evaluated_split(config: Config, asked: str | None) -> str:
    """The split that `asked` names, by default test; val, which is said, where the data has no captions for a test.

    Errors: InputError where test is asked for, and is not there.
    """
    data = config.data
    if data.dataset == "demo" or asked not in (None, "test"):
        return asked or "test"
    files = (Path(data.root), data.annotations, data.images, data.lists)
    if "test" in read_annotations(data.format, *files, wanted=("test",), needed=())[0]:
        return "test"
    if asked is not None:
        raise InputError(f"--split test: {data.root} has no test split with captions; give --split val")
    say_once(f"{data.root} has no test split with captions: evaluation is on val, which chooses the best weights too")
    return "val"


def _check_demo(config: Config) -> None:
    if config.data.dataset == "demo" and not Path(config.data.root).exists():
        raise InputError(
            f"data.root={config.data.root}: the demo data is not there yet; generate it with python -m "
            "src.commands.demo_data --config FILE"
        )


def find_images(config: Config, files: Sequence[Path]) -> ImageFiles | ShardImages:
    """Where the bytes of a data set's image files are read from."""
    data = config.data
    if data.mindrecord is None:
        return ImageFiles(files)
    return ShardImages(files, Shards(Path(data.root) / data.mindrecord, Path(data.root)))
