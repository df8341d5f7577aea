"""How much G captions of one image differ, and how captions end.

Every caption is a string of PTB tokens; `samples` maps an image id to its G captions, G at least 2.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from src.data.record import ImageId

# A caption that ends in one of these breaks off.
FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the and or but of in on at by for from to with into onto over under near behind beside between while as",
        "that which who his her its their this these is are was were has have",
    )
    for word in line.split()
)


def diversity(
    samples: Mapping[ImageId, Sequence[str]], ground_truths: Mapping[ImageId, Sequence[str]], training: Collection[str]
) -> dict[str, float]:
    """Scores of sampled captions, by name.

    Div-1, Div-2: distinct n-grams of an image's captions over their words, mean over images (Aneja et al. 2019).
    mBLEU: corpus BLEU-4 of the g-th captions against the other G-1 of their images, mean over g; lower is more diverse.
    self-CIDEr: `self_cider`, mean over images. Vocabulary: distinct words. Novel: share of captions not in `training`.
    CIDEr of the best: mean over images of the highest of the G CIDEr scores (an oracle).
    """
    flat = [caption for captions in samples.values() for caption in captions]
    documents = document_frequencies(ground_truths.values())
    return {
        "Div-1": float(np.mean([distinct_ngrams(captions, 1) for captions in samples.values()])),
        "Div-2": float(np.mean([distinct_ngrams(captions, 2) for captions in samples.values()])),
        "mBLEU": mutual_bleu(samples),
        "self-CIDEr": float(
            np.mean([self_cider(captions, documents, len(ground_truths)) for captions in samples.values()])
        ),
        "vocabulary": len({word for caption in flat for word in caption.split()}),
        "novel": sum(caption not in training for caption in flat) / len(flat),
        "best-CIDEr": best_cider(samples, ground_truths),
    }


def ngrams(caption: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a caption in order."""
    words = caption.split()
    return list(zip(*(words[start:] for start in range(n))))


def distinct_ngrams(captions: Sequence[str], n: int) -> float:
    """Div-n of one image: number of distinct n-grams over number of words; 0 where there are no words."""
    words = sum(len(caption.split()) for caption in captions)
    return len({ngram for caption in captions for ngram in ngrams(caption, n)}) / words if words else 0.0


def mutual_bleu(samples: Mapping[ImageId, Sequence[str]]) -> float:
    """Corpus BLEU-4 of the g-th captions of all images against their other captions, mean over g."""
    group_size = len(next(iter(samples.values())))
    scores = []
    for g in range(group_size):
        results = {image_id: [captions[g]] for image_id, captions in samples.items()}
        others = {image_id: [*captions[:g], *captions[g + 1 :]] for image_id, captions in samples.items()}
        scores.append(Bleu(4).compute_score(others, results, verbose=0)[0][3])
    return float(np.mean(scores))


def best_cider(samples: Mapping[ImageId, Sequence[str]], ground_truths: Mapping[ImageId, Sequence[str]]) -> float:
    """Mean over images of the highest CIDEr among an image's captions."""
    truths = {image_id: list(ground_truths[image_id]) for image_id in samples}
    group_size = len(next(iter(samples.values())))
    per_caption = [
        Cider().compute_score(truths, {image_id: [captions[g]] for image_id, captions in samples.items()})[1]
        for g in range(group_size)
    ]
    return float(np.max(per_caption, 0).mean())


def document_frequencies(documents: Iterable[Sequence[str]]) -> list[Counter]:
    """For n = 1 to 4: in how many images an n-gram occurs in a ground truth."""
    counters: list[Counter] = [Counter() for _ in range(4)]
    for captions in documents:
        for n, counter in enumerate(counters, start=1):
            counter.update({ngram for caption in captions for ngram in ngrams(caption, n)})
    return counters


def self_cider(captions: Sequence[str], frequencies: Sequence[Counter], images: int) -> float:
    """Diversity of one image's G captions: -log_G(r), r the largest singular value's share of their sum.

    The singular values are the square roots of the eigenvalues of the G x G matrix of CIDEr similarities: cosines of
    TF-IDF vectors, mean over n = 1 to 4 (Wang and Chan 2019, arXiv:1903.12020, section 3). 0: all equal, 1: nothing in
    common.
    """
    kernel = np.zeros((len(captions), len(captions)))
    for n, frequency in enumerate(frequencies, start=1):
        kernel += _cosines([Counter(ngrams(caption, n)) for caption in captions], frequency, images)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    if singular.sum() == 0:
        return 0.0
    return float(-np.log(singular.max() / singular.sum()) / np.log(len(captions)))


def _cosines(counts: Sequence[Counter], frequency: Counter, images: int) -> np.ndarray:
    """Cosines [G, G] of the TF-IDF vectors of n-gram counts; a vector of length 0 is at right angles to all."""
    columns = {ngram: column for column, ngram in enumerate(sorted(set().union(*counts)))}
    vectors = np.zeros((len(counts), len(columns)))
    for row, counter in enumerate(counts):
        for ngram, count in counter.items():
            vectors[row, columns[ngram]] = count * (np.log(images) - np.log(max(1, frequency[ngram])))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return vectors @ vectors.T


def broken_endings(captions: Collection[str]) -> float:
    """Share of captions whose last word is a function word."""
    last_words = [(caption.split() or [""])[-1] for caption in captions]
    return sum(word in FUNCTION_WORDS for word in last_words) / len(last_words)
