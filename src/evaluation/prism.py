"""Prism evaluation: what someone who sees sampled captions alone can answer about their images (arXiv:2406.14544).

Letters: n images with questions, K captions of each, Q questions on an image, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.config.schema import Config
from src.data.questions import Answerer, Question, present
from src.data.record import ImageId
from src.evaluation.bootstrap import resampled
from src.runtime.errors import InputError, RunStopped
from src.runtime.rng import counter_of, generator

RESAMPLES = 1000  # of the bootstrap over images


def prism(
    samples: Mapping[ImageId, Sequence[str]],
    questions: Mapping[ImageId, Sequence[Question]],
    answerer: Answerer,
    config: Config,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores of K captions of every image, by the questions on those images that have any.

    Each question is put once to each caption, its options in an order of their own, CANNOT last. A question without an
    answer is left out. Returns what eval_<split>.json holds under `prism`: `mean` and `best`, the means over images of
    an image's mean accuracy and of that of its best caption, and the accuracy of each type of question, all with 95 %
    intervals (`value`, `low`, `high`), and how many there were; and as segments `prism_mean` and `prism_best`, float64
    of every image of `samples`, NaN without questions.
    Errors: InputError where no image has a question, RunStopped where more than caprl.max_failed got no answer.
    """
    asked = [image_id for image_id in samples if questions.get(image_id)]
    if not asked:
        raise InputError(f"caprl.questions={config.caprl.questions} has no question on an image of this split")
    presented = [
        present(question, caption, generator("prism", config.seed, number, k, q).permutation(len(question.options)))
        for image_id, number in ((image_id, counter_of(image_id)) for image_id in asked)
        for k, caption in enumerate(samples[image_id])
        for q, question in enumerate(questions[image_id])
    ]
    answers = answerer.answer([presentation for presentation, _ in presented])
    failed = answers.count(None)
    if failed > config.caprl.max_failed * len(answers):
        raise RunStopped(
            f"{failed} of {len(answers)} questions got no answer, caprl.max_failed={config.caprl.max_failed}: see to "
            "the answering model; the captions are written, the same command scores them"
        )
    flat = np.array([np.nan if answer is None else answer == truth for answer, (_, truth) in zip(answers, presented)])
    sizes = [len(samples[image_id]) * len(questions[image_id]) for image_id in asked]
    hits = [
        part.reshape(len(samples[image_id]), -1) for image_id, part in zip(asked, np.split(flat, np.cumsum(sizes)[:-1]))
    ]  # [K, Q] of each image
    accuracy = np.array([nan_mean(rows, 1) for rows in hits])  # [n, K]
    counts = resampled(len(asked), RESAMPLES)
    ones = np.ones(len(asked))
    mean, best = nan_mean(accuracy, 1), nan_max(accuracy)
    result: dict[str, Any] = {"mean": interval(mean, ones, counts), "best": interval(best, ones, counts)}
    types = np.array([question.type for image_id in asked for question in questions[image_id]])
    image = np.repeat(np.arange(len(asked)), [len(questions[image_id]) for image_id in asked])
    columns = np.concatenate([nan_mean(rows, 0) for rows in hits])  # of each question, over the captions
    result["types"] = {}
    for name in sorted(set(types)):
        known = (types == name) & ~np.isnan(columns)
        if not known.any():
            continue
        number = np.bincount(image[known], minlength=len(asked))
        total = np.bincount(image[known], columns[known], minlength=len(asked))
        result["types"][name] = interval(total, number, counts) | {"questions": int(number.sum())}
    result |= {"images": len(asked), "questions": len(types), "captions_per_image": len(samples[asked[0]])}
    result |= {"failed": failed / len(answers)}
    place = {image_id: number for number, image_id in enumerate(asked)}
    segments = {
        name: np.array([values[place[i]] if i in place else np.nan for i in samples])
        for name, values in (("prism_mean", mean), ("prism_best", best))
    }
    return result, segments


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.divide(np.where(known, values, 0.0).sum(axis), count, out=np.full(count.shape, np.nan), where=count > 0)


def nan_max(values: np.ndarray) -> np.ndarray:
    """The largest of each row [n, K] that is not NaN; NaN where all are."""
    largest = np.where(np.isnan(values), -np.inf, values).max(1)
    return np.where(np.isinf(largest), np.nan, largest)


def interval(totals: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """sum(totals) / sum(sizes) over images [n] and the ends of its 95 % interval. counts: of `resampled`."""
    known = ~np.isnan(totals)  # not so an image whose questions got no answer
    totals, sizes, counts = totals[known], sizes[known], counts[:, known]
    held = counts @ sizes
    ratios = (counts @ totals)[held > 0] / held[held > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"value": float(totals.sum() / sizes.sum()), "low": float(low), "high": float(high)}
