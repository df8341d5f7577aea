"""Where the records and images of a data set are, as the section `data` says; without MindSpore."""

from collections.abc import Sequence
from pathlib import Path

from src.config import Config
from src.data.demo import generate_demo
from src.data.image_files import ImageFiles
from src.data.records import Record, Skipped, load_records
from src.data.shards import ShardImages, Shards


def read_records(config: Config) -> tuple[dict[str, list[Record]], list[Skipped]]:
    """The records of each split that `data` names, and what was skipped; the demo's scenes are generated first."""
    data = config.data
    if data.dataset == "demo":
        demo = config.demo
        generate_demo(
            Path(data.root), seed=demo.seed, train=demo.train, val=demo.val, test=demo.test, size=data.image_size
        )
    return load_records(
        format=data.format,
        root=Path(data.root),
        annotations=data.annotations,
        images=data.images,
        lists=data.lists,
        mindrecord=data.mindrecord,
    )


def find_images(config: Config, files: Sequence[Path]) -> ImageFiles | ShardImages:
    """Where the bytes of a data set's image files are read from."""
    data = config.data
    if data.mindrecord is None:
        return ImageFiles(files)
    return ShardImages(files, Shards(Path(data.root) / data.mindrecord, Path(data.root)))
