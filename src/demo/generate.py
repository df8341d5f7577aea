"""The demo data: pictures of simple scenes with captions in the COCO layout, and questions.

    root/annotations/captions_{train,val,test}.json    COCO captions; each image also holds its scene (see scenes.py)
    root/images/{train,val,test}/NNNNNN.png
    root/questions/{train,val,test}.jsonl              five to seven questions an image (see questions.py)

The folder appears complete or not at all: it is filled under another name and renamed at the end.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from src.data.questions import Question, write_questions
from src.demo.captions import write_captions
from src.demo.questions import questions_of
from src.demo.scenes import describe_scene, draw_scene
from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time
from src.runtime.progress import Progress
from src.runtime.rng import generator

SPLITS = ("train", "val", "test")
CAPTIONS_PER_IMAGE = 5
MIN_SIZE = 48  # pixels; below, textures cannot be told apart
MAX_IMAGES = 99_999  # of a split: image ids are 100,000 * (1 + split) + index
# Raised with every change that makes other pictures, captions or questions from the same arguments.
VERSION = 2


def generate_demo(
    root: Path, *, seed: int = 0, train: int = 3000, val: int = 300, test: int = 500, size: int = 96
) -> None:
    """Write the demo data into `root`, unless it is there already.

    The same arguments give the same bytes, and an image depends on nothing but seed, split, its index and `size`.

    Args:
        root: folder to make; it must be absent or empty, or hold demo data of the same arguments.
        seed: 0 or more.
        train, val, test: number of images of each split.
        size: width and height of the pictures in pixels.

    Raises:
        InputError: a bad argument, a folder that holds something else, or one that cannot be written.
    """
    root = Path(root)
    counts = {"train": train, "val": val, "test": test}
    _check_arguments(seed, counts, size)
    arguments = {"version": VERSION, "seed": seed, **counts, "size": size}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root.parent):
            if not _is_complete(root, arguments):
                _generate(root, arguments)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write the demo data to {root}: {reason}; choose another data.root") from error


def _check_arguments(seed: int, counts: dict[str, int], size: int) -> None:
    if seed < 0:
        raise InputError(f"demo data: seed is {seed}, it must be 0 or more")
    if size < MIN_SIZE:
        raise InputError(f"demo data: size is {size}, it must be {MIN_SIZE} pixels or more")
    for split, count in counts.items():
        if not 1 <= count <= MAX_IMAGES:
            raise InputError(f"demo data: {split} is {count} images, it must be 1 to {MAX_IMAGES}")


def _is_complete(root: Path, arguments: dict[str, int]) -> bool:
    """Whether `root` holds this very data. False if it is absent or empty; anything else is the user's to remove."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    for split in SPLITS:
        path = _annotation_path(root, split)
        try:
            found = dict(json.loads(path.read_text())["info"]["arguments"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{root} exists but is not complete demo data ({path} is missing or unreadable): "
                "remove the folder or choose another data.root"
            ) from None
        if found != arguments:
            raise InputError(
                f"{root} holds demo data of other arguments ({_differences(found, arguments)}): "
                "remove the folder or choose another data.root"
            )
    return True


def _differences(found: dict[str, int], wanted: dict[str, int]) -> str:
    unequal = [key for key in wanted if found.get(key) != wanted[key]]
    return ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in unequal)


def _generate(root: Path, arguments: dict[str, int]) -> None:
    partial = root.with_name(f".{root.name}.partial")
    if partial.exists():  # left by a run that was killed
        shutil.rmtree(partial)
    try:
        total = sum(arguments[split] for split in SPLITS)
        with Progress("demo data", total, "image") as progress:
            for split_index, split in enumerate(SPLITS):
                _write_split(partial, split_index, split, arguments, progress)
        partial.rename(root)  # an empty folder in its place is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(root: Path, split_index: int, split: str, arguments: dict[str, int], progress: Progress) -> None:
    folder = root / "images" / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    questions: list[Question] = []
    for index in range(arguments[split]):
        # A generator for every image: it stays the same image however many there are.
        rng = np.random.default_rng([arguments["seed"], split_index, index])
        scene = describe_scene(rng, arguments["size"])
        image_id = 100_000 * (1 + split_index) + index
        file_name = f"{image_id:06d}.png"
        draw_scene(scene).save(folder / file_name, compress_level=1)
        images.append(
            {"id": image_id, "file_name": file_name, "width": scene["size"], "height": scene["size"], "scene": scene}
        )
        for number, caption in enumerate(write_captions(scene, rng, CAPTIONS_PER_IMAGE)):
            annotations.append({"id": 10 * image_id + number, "image_id": image_id, "caption": caption})
        # A stream of their own: pictures and captions do not depend on what is asked.
        questions += questions_of(scene, image_id, generator("questions", arguments["seed"], split_index, index))
        progress.update()
    content = {
        "info": {"description": f"Demo scenes, {split} split", "arguments": arguments},
        "licenses": [],
        "images": images,
        "annotations": annotations,
    }
    path = _annotation_path(root, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    path = root / "questions" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_questions(path, questions)


def _annotation_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"captions_{split}.json"
