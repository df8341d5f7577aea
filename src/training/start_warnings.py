"""What can be known of a run's scores and rewards before it trains."""

import sys

from src.config import Config
from src.data.dataset import Dataset
from src.data.java import METEOR_HEAP, java_problem
from src.errors import InputError


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
    documents = config.grpo.rollout_images
    if config.cider.document_frequency == "train":
        documents = len(dataset.records["train"])
    if config.stage != "ce" and config.rewards.cider and documents == 1:
        lines.append(f"warning: rewards.cider has the document frequencies of {alone} is 0 for every caption")
    for line in lines:
        print(line, file=sys.stderr, flush=True)
