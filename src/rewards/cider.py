"""The CIDEr-D reward in NumPy: pycocoevalcap's scorer, with document frequencies from the whole training split.

Source: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), CIDEr-D,
and pycocoevalcap's cider_scorer.py, whose details count here (n 1 to 4, sigma 6; its length is a number of bigrams,
which for two captions that share a word differs as the number of words l does):

    g_n(s)     vector over n-grams: count in s * (log(images) - log(max(1, document frequency)))
    reward(c)  10/4 sum_n mean_over_ground_truths_s exp(-(l(c) - l(s))^2 / (2 sigma^2))
                                                    * min(g_n(c), g_n(s)) . g_n(s) / (|g_n(c)| |g_n(s)|)

An n-gram is an integer: its rank in a sorted table of (id of its first n-1 words, id of its last word). That is exact,
unlike a hash, and stays small at any vocabulary. In shapes, M is the number of completions, V of known words,
U of n-grams of one order, P of distinct (ground truth, n-gram) pairs, E of distinct (caption, n-gram) pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from pycocoevalcap.cider.cider import Cider

from src.data.record import ImageId

_MAX_N = 4
_SIGMA = 6.0
_SCALE = 10.0
_EOS = "\n"  # words hold no white space, so no word can be taken for the EOS token


class _Counts(NamedTuple):
    """How often each caption holds each of its n-grams of one order; sorted by caption."""

    caption: np.ndarray  # [E] int64
    prefix: np.ndarray  # [E] int64, the entry of the first n-1 words in the order before (n = 1: the caption)
    last: np.ndarray  # [E] int64, id of the last word
    times: np.ndarray  # [E] int64


class _Order(NamedTuple):
    """The n-grams of one order, and which ground truths hold them (postings, sorted by image and n-gram)."""

    keys: np.ndarray  # [U+1] int64, sorted: id of the first n-1 words * (V+1) + id of the last; U stands for unknown
    idf: np.ndarray  # [U+1] float64
    first_posting: np.ndarray  # [images+1] int64
    ngram: np.ndarray  # [P] int32
    ground_truth: np.ndarray  # [P] int32, row in the list of all ground truths
    times: np.ndarray  # [P] int32
    norm: np.ndarray  # [ground truths] float64


class CiderD:
    """CIDEr-D of completions against the ground truths of their images.

    documents: the tokenised captions of every training image. One image is one document: document frequencies
        and the number of images come from here. ValueError if there is none.
    ground_truths: the tokenised captions of the images to reward, in the order that `image_rows` counts;
        None takes the documents. ValueError for an image without any.
    eos: add an EOS token to every caption of both, and to the completions that ended. It counts like a word.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], ground_truths: Sequence[Sequence[str]] | None = None, *, eos: bool
    ) -> None:
        if not documents:
            raise ValueError("document frequencies need the captions of at least one image")
        for row, captions in enumerate(documents if ground_truths is None else ground_truths):
            if isinstance(captions, str) or not captions:
                raise ValueError(f"image row {row}: ground truths must be a list of at least one caption")
        images = documents if ground_truths is None else [*documents, *ground_truths]
        sizes = np.array([len(captions) for captions in images], np.int64)
        first = 0 if ground_truths is None else len(documents)  # the first image to reward
        self._eos = eos
        self._log_images = np.log(float(len(documents)))
        self._truths_per_image = sizes[first:]
        flat = [[*caption.split(), _EOS] if eos else caption.split() for captions in images for caption in captions]
        self._vocabulary = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(flat)))}
        word_ids, lengths = _to_ids(flat, self._vocabulary)
        self._lengths = lengths[sizes[:first].sum() :]  # [ground truths]
        image = np.repeat(np.arange(len(images)), sizes)  # [captions]
        ids = np.zeros(len(lengths), np.int64)  # the empty n-gram, of which every word is an extension
        self._orders = []
        for counts in _count_ngrams(word_ids, lengths, max(1, len(self._vocabulary))):
            keys, ids = np.unique(ids[counts.prefix] * (len(self._vocabulary) + 1) + counts.last, return_inverse=True)
            self._orders.append(self._build_order(keys, ids, counts, image, len(documents), first))

    def _build_order(
        self, keys: np.ndarray, ids: np.ndarray, counts: _Counts, image: np.ndarray, num_documents: int, first: int
    ) -> _Order:
        """ids: [E] the n-gram of each entry of `counts`; image: [captions]; first: the first image to reward."""
        pairs = np.unique(image[counts.caption] * len(keys) + ids)  # an n-gram counts once per image
        frequency = np.bincount(pairs[pairs < num_documents * len(keys)] % max(1, len(keys)), minlength=len(keys))
        idf = self._log_images - np.log(np.maximum(1.0, np.append(frequency, 0)))  # [U+1]
        kept = np.flatnonzero(image[counts.caption] >= first)
        row = image[counts.caption[kept]] - first  # sorted, as the captions are
        kept = kept[np.argsort(row * len(keys) + ids[kept], kind="stable")]
        ground_truth = counts.caption[kept] - np.searchsorted(image, first)
        weight = counts.times[kept] * idf[ids[kept]]
        return _Order(
            keys=np.append(keys, np.iinfo(np.int64).max),
            idf=idf,
            first_posting=np.searchsorted(row, np.arange(len(self._truths_per_image) + 1)),
            ngram=ids[kept].astype(np.int32),
            ground_truth=ground_truth.astype(np.int32),
            times=counts.times[kept].astype(np.int32),
            norm=np.sqrt(np.bincount(ground_truth, weight**2, len(self._lengths))),
        )

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
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self._truths_per_image):
            raise ValueError(f"image rows must lie in 0..{len(self._truths_per_image) - 1}")
        known = len(self._vocabulary)
        closed = [[*words, _EOS] if end and self._eos else words for words, end in zip(completions, ended, strict=True)]
        word_ids, lengths = _to_ids(closed, self._vocabulary)
        images, local_image = np.unique(rows, return_inverse=True)
        reward = np.zeros(len(rows))
        ids = np.zeros(len(rows), np.int64)  # the empty n-gram
        size = int(word_ids.max(initial=0)) + 1  # known and unknown words
        for order, counts in zip(self._orders, _count_ngrams(word_ids, lengths, size), strict=True):
            ids = _look_up(order.keys, ids[counts.prefix] * (known + 1) + np.minimum(counts.last, known))  # [E]
            idf = order.idf[ids]
            norm = np.sqrt(np.bincount(counts.caption, (counts.times * idf) ** 2, len(rows)))  # [M]
            entry, posting = _match(order, images, local_image[counts.caption], ids)
            row, truth, truth_count = counts.caption[entry], order.ground_truth[posting], order.times[posting]
            product = np.minimum(counts.times[entry], truth_count) * truth_count * idf[entry] ** 2
            norms = norm[row] * order.norm[truth]
            cosine = np.divide(product, norms, out=np.zeros(len(row)), where=norms > 0)
            penalty = np.exp(-((lengths[row] - self._lengths[truth]) ** 2) / (2 * _SIGMA**2))
            reward += np.bincount(row, cosine * penalty, len(rows))
        return reward * (_SCALE / _MAX_N) / self._truths_per_image[rows]


def _to_ids(captions: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """All word ids [words] and the caption lengths [captions], int64; unknown words get ids after the vocabulary."""
    new: dict[str, int] = {}
    known, size = vocabulary.get, len(vocabulary)
    ids = [known(word, -1) for words in captions for word in words]
    if -1 in ids:
        words = chain.from_iterable(captions)
        ids = [new.setdefault(word, size + len(new)) if i < 0 else i for i, word in zip(ids, words, strict=True)]
    return np.array(ids, np.int64), np.array([len(words) for words in captions], np.int64)


def _count_ngrams(word_ids: np.ndarray, lengths: np.ndarray, vocabulary: int) -> Iterator[_Counts]:
    """The n-gram counts of every caption for n = 1 to 4. word_ids: [words], each below `vocabulary`."""
    caption = np.arange(len(lengths))  # of each entry; the empty n-gram is entry 0 to captions-1
    entry = np.repeat(caption, lengths)  # of the n-gram at each start
    starts = np.arange(len(word_ids))
    left = np.repeat(np.cumsum(lengths), lengths) - starts  # words from a start to the end of its caption
    for n in range(1, _MAX_N + 1):
        whole = left[starts] >= n
        starts, entry = starts[whole], entry[whole]
        keys = entry * vocabulary + word_ids[starts + n - 1]
        keys, entry, count = np.unique(keys, return_inverse=True, return_counts=True)
        prefix, last = np.divmod(keys, vocabulary)
        caption = caption[prefix]
        yield _Counts(caption, prefix, last, count)


def _look_up(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The place of each key in the sorted table, or the last place, a sentinel, for a key that is not there."""
    keys, inverse = np.unique(keys, return_inverse=True)  # in order, a search starts where the one before ended
    place = np.searchsorted(table, keys)
    return np.where(table[place] == keys, place, len(table) - 1)[inverse]


def _match(order: _Order, images: np.ndarray, image: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair (entry, posting) of the same image and n-gram.

    images: sorted image rows; image: [E] place in `images` of each entry; ids: [E] its n-gram.
    """
    size = order.first_posting[images + 1] - order.first_posting[images]
    postings = _ranges(order.first_posting[images], size)  # all postings of these images
    table = np.repeat(np.arange(len(images)), size) * len(order.keys) + order.ngram[postings]
    keys = image * len(order.keys) + ids
    first = np.searchsorted(table, keys)
    size = np.searchsorted(table, keys, side="right") - first
    return np.repeat(np.arange(len(keys)), size), postings[_ranges(first, size)]


def _ranges(first: np.ndarray, size: np.ndarray) -> np.ndarray:
    """first[0], first[0]+1, ... (size[0] numbers), first[1], ... in one array."""
    before = np.cumsum(size) - size
    return np.repeat(first - before, size) + np.arange(size.sum())


def corpus_cider(captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]]) -> float:
    """pycocoevalcap's CIDEr of a split, for validation during training: one caption for each image.

    Both are words separated by blanks. English captions come as the tokenizer decodes them: with word pieces the score
    differs a little from eval.py's, which runs the PTB tokenizer (in Java) on the captions too.
    """
    truths = {image_id: list(ground_truths[image_id]) for image_id in captions}
    return float(Cider().compute_score(truths, {image_id: [caption] for image_id, caption in captions.items()})[0])
