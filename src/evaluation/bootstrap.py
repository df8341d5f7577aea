"""Confidence intervals for the difference of two systems: a paired bootstrap over images.

Letters: n images, R resamples. Corpus scores are recomputed in every resample: BLEU from its counts, METEOR from its
segment statistics; CIDEr (with the split's document frequencies), ROUGE-L and SPICE are means over images.
The interval covers the choice of images, not the variance of training.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# METEOR 1.5 for English (Denkowski and Lavie 2014, section 4); the matchers: exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])

Segments = Mapping[str, np.ndarray]  # `bleu` [n, 10], `meteor` [n, 23], and means over images [n], some of them NaN


def quotient(values: np.ndarray, by: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """Divide, broadcasting; `undefined` where the divisor is not positive."""
    out = np.full(np.broadcast_shapes(values.shape, by.shape), undefined)
    return np.divide(values, by, out=out, where=by > 0)


def _bleu_scores(totals: np.ndarray) -> np.ndarray:
    """Compute Bleu_1..4 [R, 4] from summed counts [R, 10], as pycocoevalcap's BleuScorer does from its totals.

    Columns: length, closest ground truth's length, n-grams for n = 1..4, matched n-grams for n = 1..4.
    """
    small, tiny = 1e-9, 1e-15
    precisions = (totals[:, 6:10] + tiny) / (totals[:, 2:6] + small)
    scores = np.cumprod(precisions, 1) ** (1 / np.arange(1, 5))
    ratio = (totals[:, :1] + tiny) / (totals[:, 1:2] + small)
    return scores * np.exp(1 - 1 / np.minimum(ratio, 1))


def meteor_score(totals: np.ndarray) -> np.ndarray:
    """Compute METEOR [R] from summed segment statistics [R, 23].

    Columns: lengths and function words of caption and ground truth (caption first), then for each matcher the matched
    content words of both and the matched function words of both, then chunks (0 of a perfect match) and all matches
    of both.
    """
    matches = totals[:, 4:20].reshape(-1, 4, 2, 2)  # matcher, content or function, caption or ground truth
    matched = np.einsum("rmws,m,w->rs", matches, _MATCHERS, [_DELTA, 1 - _DELTA])  # [R, 2]
    lengths = _DELTA * (totals[:, 0:2] - totals[:, 2:4]) + (1 - _DELTA) * totals[:, 2:4]
    precision, recall = quotient(matched, lengths).T
    mean = quotient(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    fragmentation = quotient(totals[:, 20], totals[:, 21:23].mean(1))
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def corpus_metrics(segments: Segments, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute each metric [R] of resamples; NaN where a resample holds no image that has the metric.

    counts: how often each resample holds each image [R, n].
    """
    result: dict[str, np.ndarray] = {}
    if "bleu" in segments:
        result |= {f"Bleu_{k}": column for k, column in enumerate(_bleu_scores(counts @ segments["bleu"]).T, start=1)}
    if "meteor" in segments:
        result["METEOR"] = meteor_score(counts @ segments["meteor"])
    for name, values in segments.items():
        if values.ndim == 1:
            known = ~np.isnan(values)  # Prism scores only images with questions
            result[name] = quotient(counts[:, known] @ values[known], counts[:, known].sum(1), np.nan)
    return result


def average_seeds(seeds: Sequence[Segments]) -> dict[str, np.ndarray]:
    """Average the segment statistics of one system over its seeds, image by image."""
    return {name: np.mean([seed[name] for seed in seeds], axis=0) for name in seeds[0]}


def whole_split(segments: Segments) -> dict[str, float]:
    """Compute each metric of the split itself."""
    once = np.ones((1, len(next(iter(segments.values())))))
    return {name: float(values[0]) for name, values in corpus_metrics(segments, once).items()}


def resampled(images: int, resamples: int) -> np.ndarray:
    """Draw how often each resample holds each image, float64 [R, n]; always the same draws."""
    draws = np.random.default_rng(0).integers(0, images, (resamples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float64)


def paired_differences(system: Segments, other: Segments, resamples: int) -> dict[str, dict]:
    """Compute system minus other for each metric: `mean` (of the whole split), `low` and `high` of the 95 % interval.

    Both are scored on the same resampled images (Koehn 2004); the interval takes percentiles.
    """
    counts = resampled(len(next(iter(system.values()))), resamples)
    ours, theirs = corpus_metrics(system, counts), corpus_metrics(other, counts)
    ours_whole, theirs_whole = whole_split(system), whole_split(other)
    result = {}
    for name in ours:
        low, high = np.nanpercentile(ours[name] - theirs[name], [2.5, 97.5])
        result[name] = {"mean": ours_whole[name] - theirs_whole[name], "low": float(low), "high": float(high)}
    return result
