"""Find the records and images of a data set from its configuration; without MindSpore."""

from collections.abc import Sequence
from pathlib import Path

from src.config.schema import Config
from src.data.image_files import ImageFiles
from src.data.record import Record, Skipped
from src.data.records import load_records, read_annotations, with_captions
from src.data.shards import ShardImages, Shards
from src.runtime.environment import say_once
from src.runtime.errors import InputError


def read_records(config: Config, scored: str | None = None) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """Read the records of each split, and list what was skipped; scored: read only this split, without image files."""
    data = config.data
    if data.dataset == "demo" and not Path(data.root).exists():
        raise InputError(
            f"data.root={data.root}: no demo data yet; generate it with python -m src.commands.check --config FILE"
        )
    if scored is None:
        return load_records(data)
    splits, skipped = read_annotations(data, wanted=(scored,), needed=(scored,))
    return {scored: with_captions(scored, splits[scored], skipped)}, skipped


def evaluated_split(config: Config, asked: str | None) -> str:
    """Return the split to evaluate: `asked`, else test, else val (with a note) if test has no captions."""
    data = config.data
    if data.dataset == "demo" or asked not in (None, "test"):
        return asked or "test"
    if "test" in read_annotations(data, wanted=("test",), needed=())[0]:
        return "test"
    if asked is not None:
        raise InputError(f"--split test: {data.root} has no test split with captions; pass --split val")
    say_once(f"{data.root} has no test split with captions: evaluating on val, which also selects the best weights")
    return "val"


def find_images(config: Config, files: Sequence[Path]) -> ImageFiles:
    """Open the image files of a data set, or the shards that replace them."""
    data = config.data
    if data.mindrecord is None:
        return ImageFiles(files)
    return ShardImages(files, Shards(Path(data.root) / data.mindrecord, Path(data.root)))
