"""The phases on the host: the reward of synthetic captions, also by pycocoevalcap, and the evaluation metrics."""

from collections.abc import Iterator

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from src.bench.phases import Phase
from src.bench.sizes import Sizes
from src.data.record import ImageId
from src.evaluation.caption_metrics import compute_metrics
from src.rewards.cider import CiderD

CAPTIONS_PER_IMAGE = 5
GROUP = 5
CAPTION_WORDS = 11  # on average


def synthetic_captions(images: int, rng: np.random.Generator) -> list[list[str]]:
    """Five captions per image with most words in common, 8 to 14 words from 10,000 by Zipf's law."""
    shares = 1 / np.arange(1, 10001)
    words = np.array([f"w{i}" for i in range(10000)])
    base = rng.choice(10000, (images, 1, 14), p=shares / shares.sum())
    other = rng.choice(10000, (images, CAPTIONS_PER_IMAGE, 14), p=shares / shares.sum())
    chosen = words[np.where(rng.random(other.shape) < 0.6, base, other)]
    lengths = rng.integers(8, 15, (images, CAPTIONS_PER_IMAGE))
    return [[" ".join(caption[:n]) for caption, n in zip(image, sizes)] for image, sizes in zip(chosen, lengths)]


def host_phases(sizes: Sizes) -> Iterator[Phase]:
    """reward_setup, and reward of `rewarded` captions in groups of five; reward_pycocoevalcap: the same by its scorer,
    with the frequencies ready (of these images only; all would need gigabytes); metrics: the whole table of `scored`
    captions, Java included.
    """
    rng = np.random.default_rng(0)
    truths = synthetic_captions(sizes.documents, rng)
    made: dict[str, CiderD] = {}
    number = sizes.documents * CAPTIONS_PER_IMAGE
    yield Phase("reward_setup", number, lambda: made.update(scorer=CiderD(truths, eos=False)))
    images = np.resize(rng.permutation(sizes.documents), -(-sizes.rewarded // GROUP))
    rows = np.repeat(images, GROUP)[: sizes.rewarded]
    texts = [truths[row][place % CAPTIONS_PER_IMAGE] for place, row in enumerate(rng.permutation(rows))]
    captions = [text.split() for text in texts]
    ended = np.ones(len(rows), bool)
    yield Phase("reward", len(rows), lambda: made["scorer"](rows, captions, ended))

    frequencies = CiderScorer()
    for row in images:
        frequencies += (None, truths[row])
    frequencies.compute_doc_freq()

    def peer() -> None:
        scorer = CiderScorer()
        for row, text in zip(rows, texts):
            scorer += (text, truths[row])
        scorer.document_frequency = frequencies.document_frequency
        scorer.compute_cider()

    yield Phase("reward_pycocoevalcap", len(rows), peer)
    scored: dict[ImageId, list[str]] = {image: truths[image] for image in range(min(sizes.scored, sizes.documents))}
    candidates: dict[ImageId, str] = {image: captions[0] for image, captions in scored.items()}
    yield Phase("metrics", len(scored), lambda: compute_metrics(candidates, scored))
