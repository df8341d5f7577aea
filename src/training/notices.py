"""Say before a run trains what was left out of its data, and what to expect of its scores and rewards."""

import sys
from pathlib import Path

from src.config.schema import Config
from src.data.dataset import Dataset
from src.runtime.errors import InputError
from src.runtime.java import METEOR_HEAP, java_problem


def list_skipped(folder: Path, dataset: Dataset) -> None:
    """Write skipped.txt and announce it if images or captions were left out."""
    if dataset.skipped:
        listing = folder / "skipped.txt"
        listing.write_text("".join(f"{it.file}\t{it.reason}\n" for it in dataset.skipped), encoding="utf-8")
        print(f"{len(dataset.skipped)} images or captions skipped, listed in {listing}")


def say_before_training(config: Config, dataset: Dataset) -> None:
    """Print the language on stdout, and warnings about scores and rewards on stderr.

    Errors: InputError if Java, without which English captions cannot be scored, does not start.
    """
    words = dataset.words
    lines = [words.warning] if words.warning else []
    if words.note:
        print(words.note, flush=True)
    if words.language == "en" and (problem := java_problem(METEOR_HEAP)):
        if without_heap := java_problem():
            raise InputError(f"the evaluation needs Java: {without_heap}")
        lines.append(f"warning: the evaluation will skip METEOR, which needs a heap of {METEOR_HEAP}: {problem}")
    zero = "CIDEr weighs words by the logarithm of the number of images, and is 0"
    if len(dataset.records["val"]) == 1:
        lines.append(f"warning: the validation split has one image: {zero}, so `best` will be the first validation")
    trained = config.cider.document_frequency == "train"
    documents = len(dataset.records["train"]) if trained else config.rl.rollout_images
    if config.stage != "ce" and config.rewards.cider and documents == 1:
        lines.append(f"warning: rewards.cider has the document frequencies of one image: {zero} for every caption")
    for line in lines:
        print(line, file=sys.stderr, flush=True)
