"""The demo data: pictures of simple scenes with captions in the COCO layout, and questions.

    root/annotations/captions_{train,val,test}.json    COCO captions; each image also holds its scene (see scenes.py)
    root/images/{train,val,test}/NNNNNN.png
    root/questions/{train,val,test}.jsonl              five to seven questions an image (see scene_questions.py)

The folder appears complete or not at all: it is filled under another name and renamed at the end.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from src.data.questions import Question, write_questions
from src.data.record import SPLITS
from src.demo.scene_captions import write_captions
from src.demo.scene_questions import choose_questions, write_question
from src.demo.scenes import describe_scene, draw_scene
from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time, writing
from src.runtime.progress import Progress
from src.runtime.rng import generator

_MIN_SIZE = 48  # pixels; textures of smaller pictures cannot be told apart
_MAX_IMAGES = 99_999  # of a split: image ids are 100,000 * (1 + split) + index
# Raised with every change that makes other pictures, captions or questions from the same arguments.
_VERSION = 2


def generate_demo(
    root: Path, *, seed: int = 0, train: int = 3000, val: int = 300, test: int = 500, size: int = 96
) -> None:
    """Write the demo data to `root`, unless it is there already.

    The same arguments give the same bytes, and an image depends on nothing but seed, split, its index and `size`.

    train, val and test are numbers of images; size is the width and height of the pictures in pixels.
    Raises InputError if an argument is wrong, or the folder holds something else or cannot be written.
    """
    arguments = {"version": _VERSION, "seed": seed, "train": train, "val": val, "test": test, "size": size}
    least = {"size": _MIN_SIZE, **dict.fromkeys(SPLITS, 1)}
    for key, value in arguments.items():
        if value < least.get(key, 0):
            raise InputError(f"demo data: {key} is {value}, but must be at least {least.get(key, 0)}")
        if key in SPLITS and value > _MAX_IMAGES:
            raise InputError(f"demo data: {key} is {value} images, but must be at most {_MAX_IMAGES}")
    with writing(root, "choose another data.root"):
        root.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root.parent):
            if not _is_complete(root, arguments):
                _generate(root, arguments)


def _is_complete(root: Path, arguments: dict[str, int]) -> bool:
    """Return False if `root` is absent or empty. Raises InputError if it holds other data, never removed here."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    fix = "remove the folder or choose another data.root"
    for split in SPLITS:
        path = root / f"annotations/captions_{split}.json"
        try:
            found = dict(json.loads(path.read_text())["info"]["arguments"])
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"{path} is missing or unreadable"
            raise InputError(f"{root} exists but is not complete demo data ({reason}): {fix}") from None
        if found != arguments:
            unequal = [key for key in arguments if found.get(key) != arguments[key]]
            differences = ", ".join(f"{key} {found.get(key)} instead of {arguments[key]}" for key in unequal)
            raise InputError(f"{root} holds demo data generated with other settings ({differences}): {fix}")
    return True


def _generate(root: Path, arguments: dict[str, int]) -> None:
    partial = root.with_name(f".{root.name}.partial")
    if partial.exists():  # left by a run that was killed
        shutil.rmtree(partial)
    try:
        with Progress("demo data", sum(arguments[split] for split in SPLITS), "image") as progress:
            for split in SPLITS:
                _write_split(partial, split, arguments, progress)
        partial.rename(root)  # an empty folder in its place is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(root: Path, split: str, arguments: dict[str, int], progress: Progress) -> None:
    folder, place = root / "images" / split, SPLITS.index(split)
    folder.mkdir(parents=True)
    images, annotations = [], []
    questions: list[Question] = []
    for index in range(arguments[split]):
        # A generator for every image: it stays the same image however many there are.
        rng = np.random.default_rng([arguments["seed"], place, index])
        scene = describe_scene(rng, arguments["size"])
        image_id = 100_000 * (1 + place) + index
        entry = {"id": image_id, "file_name": f"{image_id:06d}.png", "width": scene["size"], "height": scene["size"]}
        images.append({**entry, "scene": scene})
        draw_scene(scene).save(folder / entry["file_name"], compress_level=1)
        for number, caption in enumerate(write_captions(scene, rng)):
            annotations.append({"id": 10 * image_id + number, "image_id": image_id, "caption": caption})
        # Questions have their own stream: pictures and captions do not depend on them.
        rng = generator("questions", arguments["seed"], place, index)
        questions += [write_question(candidate, image_id, rng) for candidate in choose_questions(scene, rng)]
        progress.update()
    info = {"description": f"Demo scenes, {split} split", "arguments": arguments}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations}
    for folder in (root / "annotations", root / "questions"):
        folder.mkdir(exist_ok=True)
    (root / f"annotations/captions_{split}.json").write_text(json.dumps(content))
    write_questions(root / "questions" / f"{split}.jsonl", questions)
