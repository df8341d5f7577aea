"""The CIDEr-D reward on sparse counts: pycocoevalcap's scorer, with document frequencies from the training split.

Source: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), CIDEr-D,
and pycocoevalcap's cider_scorer.py, whose details count here (n 1 to 4, sigma 6; its length is a number of bigrams,
which for two captions that share a word differs as the number of words l does):

    g_n(s)     vector over n-grams: count in s * (log(images) - log(max(1, document frequency)))
    reward(c)  10/4 sum_n mean_over_ground_truths_s exp(-(l(c) - l(s))^2 / (2 sigma^2))
                                                    * min(g_n(c), g_n(s)) . g_n(s) / (|g_n(c)| |g_n(s)|)

An n-gram is an integer: its rank in a sorted table of (id of its first n-1 words, id of its last word). That is exact,
unlike a hash, and stays small at any vocabulary. In shapes, M is the number of completions, U of n-grams of one order.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from pycocoevalcap.cider.cider import Cider
from scipy.sparse import csr_array

from src.data.record import ImageId

_MAX_N = 4
_SIGMA = 6.0
_SCALE = 10.0
_EOS = "\n"  # words hold no white space, so no word can be taken for the EOS token
_WORDS = 2**31  # exceeds every word id
_END = np.array([np.iinfo(np.int64).max])  # closes every table of n-grams


class _Order(NamedTuple):
    """The n-grams of one order, and the ground truths in terms of them."""

    table: np.ndarray  # [U+1] int64, sorted: id of the first n-1 words * _WORDS + id of the last; _END
    idf: np.ndarray  # [U+1] float64; U stands for every unknown n-gram
    counts: csr_array  # [ground truths, U+1]
    norm: np.ndarray  # [ground truths] float64


class CiderD:
    """CIDEr-D of completions against the ground truths of their images.

    ground_truths: the tokenised captions of every image. One image is one document: document frequencies and the
        number of images come from here. ValueError if there is no image, or one has no caption.
    eos: add an EOS token to every ground truth, and to the completions that ended. It counts like a word.
    """

    def __init__(self, ground_truths: Sequence[Sequence[str]], *, eos: bool) -> None:
        if not ground_truths:
            raise ValueError("document frequencies need the captions of at least one image")
        for row, captions in enumerate(ground_truths):
            if isinstance(captions, str) or not captions:
                raise ValueError(f"image row {row}: ground truths must be a list of at least one caption")
        self._eos = eos
        self._truths = np.array([len(captions) for captions in ground_truths], np.int64)  # of each image
        self._first = np.cumsum(self._truths) - self._truths
        self._vocabulary: dict[str, int] = {}
        truths = [caption.split() for captions in ground_truths for caption in captions]
        flat = [[*words, _EOS] for words in truths] if eos else truths
        self._lengths = _lengths(flat)  # [ground truths]
        self._orders = []
        image = np.repeat(np.arange(len(ground_truths)), self._truths)  # [ground truths]
        for counts, table in _count_ngrams(flat, self._vocabulary, [_END] * _MAX_N):
            caption, ngram = counts.nonzero()
            shape = (len(ground_truths), counts.shape[1])
            held = csr_array((np.ones(len(caption), bool), (image[caption], ngram)), shape)
            frequency = held.sum(0, np.int64)  # an n-gram counts once per image
            idf = np.log(len(ground_truths)) - np.log(np.maximum(frequency, 1))
            self._orders.append(_Order(np.append(table, _END), idf, counts, _norm(counts, idf)))

    def __call__(self, image_rows: np.ndarray, completions: Sequence[Sequence[str]], ended: np.ndarray) -> np.ndarray:
        """Reward [M] float64 of each completion, on pycocoevalcap's scale: 10 for its only ground truth.

        image_rows: [M] int, the row of each completion's image in `ground_truths`; the G rows of a group repeat it.
        completions: M lists of words. An unknown word matches nothing, and counts in norm and length.
        ended: [M] bool, whether the EOS was sampled; not read with eos=False.
        ValueError for sizes that differ, a row out of range, or a string in place of a list of words.
        """
        rows, ended = np.asarray(image_rows, np.int64), np.asarray(ended, bool)
        if not rows.shape == ended.shape == (len(completions),) or any(isinstance(c, str) for c in completions):
            raise ValueError(f"want as many image rows, lists of words and flags, got {rows.shape}, {ended.shape}")
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self._truths):
            raise ValueError(f"image rows must lie in 0..{len(self._truths) - 1}")
        closed = [[*words, _EOS] if end and self._eos else words for words, end in zip(completions, ended, strict=True)]
        size = self._truths[rows]
        row = np.repeat(np.arange(len(rows)), size)  # of each pair of completion and ground truth
        truth = np.repeat(self._first[rows] - np.cumsum(size) + size, size) + np.arange(len(row))
        similarity = np.zeros(len(row))
        known = [order.table for order in self._orders]
        for order, (counts, _) in zip(self._orders, _count_ngrams(closed, dict(self._vocabulary), known)):
            ours, theirs = counts[row], order.counts[truth]
            theirs.resize(ours.shape)
            product = _weigh(ours.minimum(theirs).multiply(theirs), order.idf)
            norms = _norm(counts, order.idf)[row] * order.norm[truth]
            similarity += np.divide(product, norms, out=np.zeros(len(row)), where=norms > 0)
        penalty = np.exp(-((_lengths(closed)[row] - self._lengths[truth]) ** 2) / (2 * _SIGMA**2))
        return np.bincount(row, similarity * penalty, len(rows)) * (_SCALE / _MAX_N) / size


def _count_ngrams(
    captions: Sequence[Sequence[str]], vocabulary: dict[str, int], tables: Sequence[np.ndarray]
) -> Iterator[tuple[csr_array, np.ndarray]]:
    """How often each caption holds each n-gram, [captions, n-grams], for n = 1 to 4, and the n-grams not in the table.

    Unknown words are added to the vocabulary. Unknown n-grams take the columns from the place of _END on.
    """
    words = [vocabulary.setdefault(word, len(vocabulary)) for word in chain.from_iterable(captions)]
    word_ids, lengths = np.array(words, np.int64), _lengths(captions)
    caption = np.repeat(np.arange(len(captions)), lengths)  # of each word
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words to the end of the caption
    ids = np.zeros(len(words), np.int64)  # of the n-gram at each start; every word extends the empty one
    for n, table in enumerate(tables):
        starts = np.flatnonzero(left > n)
        keys, inverse = np.unique(ids[starts] * _WORDS + word_ids[starts + n], return_inverse=True)
        place = np.asarray(np.searchsorted(table, keys))
        new = table[place] != keys
        place[new] = np.arange(len(table) - 1, len(table) - 1 + new.sum())
        ids[starts] = place[inverse]
        shape = (len(captions), len(table) + int(new.sum()))
        yield csr_array((np.ones(len(starts), np.float32), (caption[starts], ids[starts])), shape), keys[new]


def _lengths(captions: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([len(words) for words in captions], np.int64)


def _weigh(counts: csr_array, idf: np.ndarray) -> np.ndarray:
    """The sum over n-grams of counts * idf^2, for each row."""
    weighted = counts.data * idf[np.minimum(counts.indices, len(idf) - 1)] ** 2
    return csr_array((weighted, counts.indices, counts.indptr), counts.shape).sum(1)


def _norm(counts: csr_array, idf: np.ndarray) -> np.ndarray:
    return np.sqrt(_weigh(counts.power(2), idf))


def corpus_cider(captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]]) -> float:
    """pycocoevalcap's CIDEr of one caption for each image, for validation during training.

    Words are separated by blanks. English captions come as the tokenizer decodes them: with word pieces the score
    differs a little from eval.py's, which runs the PTB tokenizer (in Java) on the captions too.
    """
    truths = {image_id: list(ground_truths[image_id]) for image_id in captions}
    return float(Cider().compute_score(truths, {image_id: [caption] for image_id, caption in captions.items()})[0])
