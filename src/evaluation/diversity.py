"""Measure how much G captions of one image differ, and how captions end.

Every caption is a string of PTB tokens; `samples` maps an image id to its G captions, G at least 2.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from src.data.record import ImageId
from src.evaluation.bootstrap import quotient

# A caption that ends in one of these is cut off.
_FUNCTION_WORDS = (
    "a an the and or but of in on at by for from to with into onto over under near behind beside between while as "
    "that which who his her its their this these is are was were has have"
)


def diversity(
    samples: Mapping[ImageId, Sequence[str]], ground_truths: Mapping[ImageId, Sequence[str]], training: Collection[str]
) -> dict[str, float]:
    """Score sampled captions, by name.

    Div-1, Div-2: distinct n-grams of an image's captions over their words, mean over images (Aneja et al. 2019).
    mBLEU: corpus BLEU-4 of the g-th captions against the other G-1 of their images, mean over g; lower is more diverse.
    self-CIDEr: `self_cider`, mean over images. Vocabulary: distinct words. Novel: share of captions not in `training`.
    CIDEr of the best: mean over images of the highest of the G CIDEr scores (an oracle).
    """
    flat = [caption for captions in samples.values() for caption in captions]
    frequencies, images = document_frequencies(ground_truths.values()), len(ground_truths)
    return {
        "Div-1": float(np.mean([distinct_ngrams(captions, 1) for captions in samples.values()])),
        "Div-2": float(np.mean([distinct_ngrams(captions, 2) for captions in samples.values()])),
        "mBLEU": mutual_bleu(samples),
        "self-CIDEr": float(np.mean([self_cider(captions, frequencies, images) for captions in samples.values()])),
        "vocabulary": len({word for caption in flat for word in caption.split()}),
        "novel": sum(caption not in training for caption in flat) / len(flat),
        "best-CIDEr": best_cider(samples, ground_truths),
    }


def _ngrams(caption: str, n: int) -> list[tuple[str, ...]]:
    words = caption.split()
    return list(zip(*(words[start:] for start in range(n))))


def distinct_ngrams(captions: Sequence[str], n: int) -> float:
    """Compute Div-n of one image; 0 where there are no words."""
    words = sum(len(caption.split()) for caption in captions)
    return len({ngram for caption in captions for ngram in _ngrams(caption, n)}) / words if words else 0.0


def _columns(samples: Mapping[ImageId, Sequence[str]]) -> Iterator[tuple[int, dict[ImageId, list[str]]]]:
    """Yield g and the g-th captions of all images, as pycocoevalcap takes them."""
    for g in range(len(next(iter(samples.values())))):
        yield g, {image_id: [captions[g]] for image_id, captions in samples.items()}


def mutual_bleu(samples: Mapping[ImageId, Sequence[str]]) -> float:
    """Compute corpus BLEU-4 of the g-th captions of all images against their other captions, mean over g."""
    scores = []
    for g, results in _columns(samples):
        others = {image_id: [*captions[:g], *captions[g + 1 :]] for image_id, captions in samples.items()}
        scores.append(Bleu(4).compute_score(others, results, verbose=0)[0][3])
    return float(np.mean(scores))


def best_cider(samples: Mapping[ImageId, Sequence[str]], ground_truths: Mapping[ImageId, Sequence[str]]) -> float:
    """Compute the mean over images of the highest CIDEr among an image's captions."""
    truths = {image_id: list(ground_truths[image_id]) for image_id in samples}
    return float(np.max([Cider().compute_score(truths, results)[1] for _, results in _columns(samples)], 0).mean())


def document_frequencies(documents: Iterable[Sequence[str]]) -> list[Counter]:
    """Count, for n = 1 to 4, in how many images an n-gram occurs in a ground truth."""
    counters: list[Counter] = [Counter() for _ in range(4)]
    for captions in documents:
        for n, counter in enumerate(counters, start=1):
            counter.update({ngram for caption in captions for ngram in _ngrams(caption, n)})
    return counters


def self_cider(captions: Sequence[str], frequencies: Sequence[Counter], images: int) -> float:
    """Compute the diversity of one image's G captions: -log_G(r), r the largest singular value's share of their sum.

    The singular values are the square roots of the eigenvalues of the G x G matrix of CIDEr similarities: cosines of
    TF-IDF vectors, mean over n = 1 to 4 (Wang and Chan 2019, arXiv:1903.12020, section 3). 0: all equal, 1: nothing in
    common. A vector of length 0 is orthogonal to all.
    """
    kernel = np.zeros((len(captions), len(captions)))
    for n, frequency in enumerate(frequencies, start=1):
        counts = [Counter(_ngrams(caption, n)) for caption in captions]
        terms = sorted(set().union(*counts))
        idf = np.log(images) - np.log([max(1, frequency[term]) for term in terms])
        vectors = np.array([[counter[term] for term in terms] for counter in counts]) * idf
        vectors = quotient(vectors, np.linalg.norm(vectors, axis=1, keepdims=True))
        kernel += vectors @ vectors.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    if singular.sum() == 0:
        return 0.0
    return float(-np.log(singular.max() / singular.sum()) / np.log(len(captions)))


def broken_endings(captions: Collection[str]) -> float:
    """Compute the share of captions whose last word is a function word."""
    function_words = frozenset(_FUNCTION_WORDS.split())
    return sum((caption.split() or [""])[-1] in function_words for caption in captions) / len(captions)
