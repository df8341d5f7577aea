"""Prism evaluation: how many questions about an image its sampled captions alone can answer (arXiv:2406.14544).

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
    """Score K captions of every image by the questions on those images that have any.

    Each question is asked once about each caption, with its options in a random order, CANNOT last. Unanswered
    questions are left out. Returns what eval_<split>.json holds under `prism`: `mean` and `best`, the means over images
    of an image's mean accuracy and of the accuracy of its best caption, and the accuracy of each type of question, all
    with 95 % intervals (`value`, `low`, `high`), and counts; and as segments `prism_mean` and `prism_best`, float64 of
    every image of `samples`, NaN without questions.
    Errors: InputError if no image has a question, RunStopped if more than caprl.max_failed got no answer.
    """
    asked = [image_id for image_id in samples if questions.get(image_id)]
    if not asked:
        raise InputError(
            f"caprl.questions={config.caprl.questions} has no question on an image of this split; use the "
            "questions of this split"
        )
    types_of = {image_id: [question.type for question in questions[image_id]] for image_id in asked}
    types = [name for image_id in asked for name in types_of[image_id]]
    cells, presented = [], []  # (image, caption, question), and what the answerer gets
    for image, image_id in enumerate(asked):
        number = counter_of(image_id)
        for k, caption in enumerate(samples[image_id]):
            for q, question in enumerate(questions[image_id]):
                order = generator("prism", config.seed, number, k, q).permutation(len(question.options))
                cells.append((image, k, q))
                presented.append(present(question, caption, order))
    answers = answerer.answer([presentation for presentation, _ in presented])
    failed = answers.count(None)
    if failed > config.caprl.max_failed * len(answers):
        raise RunStopped(
            f"{failed} of {len(answers)} questions got no answer, more than caprl.max_failed={config.caprl.max_failed} "
            "allows; check the answering model; the captions are saved, and the same command scores them"
        )
    images, captions, width = (1 + max(column) for column in zip(*cells))
    hits = np.ma.masked_all((images, captions, width))  # [n, K, Q], masked where there is no question or no answer
    for cell, answer, (_, truth) in zip(cells, answers, presented):
        if answer is not None:
            hits[cell] = answer == truth
    accuracy = hits.mean(2)  # [n, K]
    scores = {"mean": accuracy.mean(1).filled(np.nan), "best": accuracy.max(1).filled(np.nan)}
    counts = resampled(len(asked), RESAMPLES)
    result: dict[str, Any] = {name: interval(values, np.ones(len(asked)), counts) for name, values in scores.items()}
    by_question = hits.mean(1)  # [n, Q]
    kinds = np.array([[*types_of[image_id], *[""] * (width - len(types_of[image_id]))] for image_id in asked])
    result["types"] = {}
    for name in sorted(set(types)):
        found = np.ma.masked_where(kinds != name, by_question)
        if found.count():
            number_of = found.count(1)
            result["types"][name] = interval(found.sum(1).filled(0), number_of, counts)
            result["types"][name]["questions"] = int(number_of.sum())
    result |= {"images": len(asked), "questions": len(types), "captions_per_image": captions}
    result["failed"] = failed / len(answers)
    place = {image_id: number for number, image_id in enumerate(asked)}
    places = [place.get(image_id, -1) for image_id in samples]
    return result, {f"prism_{name}": np.append(values, np.nan)[places] for name, values in scores.items()}


def interval(totals: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Compute sum(totals) / sum(sizes) over images [n] with its 95 % interval. counts: from `resampled`."""
    known = ~np.isnan(totals)  # NaN: an image without answers
    totals, sizes, counts = totals[known], sizes[known], counts[:, known]
    held = counts @ sizes
    ratios = (counts @ totals)[held > 0] / held[held > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"value": float(totals.sum() / sizes.sum()), "low": float(low), "high": float(high)}
