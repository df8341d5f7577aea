"""Confidence intervals of the difference of two systems: a paired bootstrap over images.

Letters: n images, R resamples. Corpus scores are computed anew in every resample: BLEU from its counts, METEOR from its
segment statistics; CIDEr (with the split's document frequencies), ROUGE-L and SPICE are means over images.
The interval covers the choice of images, not the variance of training.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# METEOR 1.5 for English (Denkowski and Lavie 2014, section 4); the matchers: exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])


def bleu_scores(totals: np.ndarray) -> np.ndarray:
    """Bleu_1..4 [R, 4] of summed counts [R, 10], as pycocoevalcap's BleuScorer computes them from its totals.

    Columns: length, closest ground truth's length, n-grams for n = 1..4, matched n-grams for n = 1..4.
    """
    small, tiny = 1e-9, 1e-15
    precisions = (totals[:, 6:10] + tiny) / (totals[:, 2:6] + small)
    scores = np.cumprod(precisions, 1) ** (1 / np.arange(1, 5))
    ratio = (totals[:, :1] + tiny) / (totals[:, 1:2] + small)
    return scores * np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)


def meteor_score(totals: np.ndarray) -> np.ndarray:
    """METEOR [R] of summed segment statistics [R, 23].

    Columns: lengths and function words of caption and ground truth (caption first), then for each matcher the matched
    content words of both and the matched function words of both, then chunks (0 of a perfect match) and all matches
    of both.
    """
    matches = totals[:, 4:20].reshape(-1, 4, 2, 2)  # matcher, content or function, caption or ground truth
    weights = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("rmws,m,w->rs", matches, _MATCHERS, weights)  # [R, 2]
    words = totals[:, 0:2] - totals[:, 2:4]
    lengths = _DELTA * words + (1 - _DELTA) * totals[:, 2:4]
    shares = np.divide(matched, lengths, out=np.zeros_like(matched), where=lengths > 0)
    precision, recall = shares.T
    defined = (precision > 0) & (recall > 0)
    mean = np.zeros(len(totals))
    mean[defined] = 1 / ((1 - _ALPHA) / precision[defined] + _ALPHA / recall[defined])
    total_matches = totals[:, 21:23].mean(1)
    fragmentation = np.divide(totals[:, 20], total_matches, out=np.zeros(len(totals)), where=total_matches > 0)
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def corpus_metrics(segments: Mapping[str, np.ndarray], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric [R] of resamples: counts [R, n] says how often a resample holds an image; NaN without any.

    segments: `bleu` [n, 10], `meteor` [n, 23], and any metric that is a mean over images [n] (NaN: of the others), by
    its name. A metric that was left out has none.
    """
    result: dict[str, np.ndarray] = {}
    if "bleu" in segments:
        result |= {f"Bleu_{k}": column for k, column in enumerate(bleu_scores(counts @ segments["bleu"]).T, start=1)}
    if "meteor" in segments:
        result["METEOR"] = meteor_score(counts @ segments["meteor"])
    for name, values in segments.items():
        if values.ndim == 1:
            known = ~np.isnan(values)  # Prism's, of an image without questions
            held = counts[:, known].sum(1)
            total = counts[:, known] @ values[known]
            result[name] = np.divide(total, held, out=np.full(len(counts), np.nan), where=held > 0)
    return result


def average_seeds(seeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Segment statistics of one system, averaged over its seeds image by image."""
    return {name: np.mean([seed[name] for seed in seeds], axis=0) for name in seeds[0]}


def whole_split(segments: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each metric of the split itself."""
    once = np.ones((1, _images(segments)))
    return {name: float(values[0]) for name, values in corpus_metrics(segments, once).items()}


def _images(segments: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(segments.values())))


def resampled(images: int, resamples: int) -> np.ndarray:
    """How often each resample holds each image, float64 [R, n]; always the same draws."""
    draws = np.random.default_rng(0).integers(0, images, (resamples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float64)


def paired_differences(
    system: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], resamples: int
) -> dict[str, dict[str, float]]:
    """system minus other for each metric: `mean` (of the whole split), and `low` and `high` of the 95 % interval.

    Both are scored on the same resampled images (Koehn 2004); the interval takes percentiles.
    """
    counts = resampled(_images(system), resamples)
    ours, theirs = corpus_metrics(system, counts), corpus_metrics(other, counts)
    ours_whole, theirs_whole = whole_split(system), whole_split(other)
    result = {}
    for name in ours:
        low, high = np.nanpercentile(ours[name] - theirs[name], [2.5, 97.5])
        result[name] = {"mean": ours_whole[name] - theirs_whole[name], "low": float(low), "high": float(high)}
    return result
