"""What is said before a run trains: what was left out of its data, and what its scores and rewards will be like."""

import sys
from pathlib import Path

from src.config.schema import Config
from src.data.dataset import Dataset
from src.runtime.errors import InputError
from src.runtime.java import METEOR_HEAP, java_problem


def list_skipped(folder: Path, dataset: Dataset) -> None:
    """Write skipped.txt, and say so, where images or captions were left out."""
    if dataset.skipped:
        listing = folder / "skipped.txt"
        lines = (f"{skipped.file}\t{skipped.reason}\n" for skipped in dataset.skipped)
        listing.write_text("".join(lines), encoding="utf-8")
        print(f"{len(dataset.skipped)} images or captions skipped, listed in {listing}")


def say_before_training(config: Config, dataset: Dataset) -> None:
    """Say what scores and rewards of these captions will be like, on stderr but for the language.

    Errors: InputError where Java, without which English captions cannot be scored, does not start.
    """
    words = dataset.words
    lines = [words.warning] if words.warning else []
    if words.note:
        print(words.note, flush=True)
    problem = java_problem(METEOR_HEAP) if words.language == "en" else ""
    if problem:
        without_heap = java_problem()
        if without_heap:
            raise InputError(f"the evaluation needs Java: {without_heap}")
        lines.append(f"warning: the evaluation will have no METEOR, which wants a heap of {METEOR_HEAP}: {problem}")
    alone = "one image: CIDEr, which weighs words by the logarithm of the number of images,"
    if len(dataset.records["val"]) == 1:
        lines.append(f"warning: the validation split has {alone} is 0 there, and `best` will be the first validation")
    documents = config.rl.rollout_images
    if config.cider.document_frequency == "train":
        documents = len(dataset.records["train"])
    if config.stage != "ce" and config.rewards.cider and documents == 1:
        lines.append(f"warning: rewards.cider has the document frequencies of {alone} is 0 for every caption")
    for line in lines:
        print(line, file=sys.stderr, flush=True)
