"""Prism evaluation against numbers worked out by hand."""

import numpy as np
import pytest
from tiny import ROOT

from src.config.load import load_config
from src.data.questions import CANNOT, Question
from src.demo.reading import SceneReader
from src.evaluation.bootstrap import resampled
from src.evaluation.prism import interval, prism
from src.runtime.errors import InputError, RunStopped
from src.training.answerer import build_answerer

CONFIG = load_config(ROOT / "configs/demo/grpo.yaml", ["caprl.max_failed=0.3"])
QUESTIONS = {
    1: [
        Question(1, "what color", ("red", "blue"), "red", "colour"),
        Question(1, "what shape", ("star", "ring"), "star", "shape"),
    ],
    2: [Question(2, "what color", ("red", "blue"), "blue", "colour")],
    4: [Question(4, "what color", ("red", "blue"), "blue", "colour")],  # on no image of the samples
}
SAMPLES = {1: ["a red star", "a red thing"], 2: ["a red ring", "a thing"], 3: ["a blue star", "a star"]}


class Words:
    """Chooses the option that stands in the caption, else CANNOT; None where a caption holds `fails`."""

    def __init__(self, fails=None):
        self.fails = fails
        self.orders = []

    def answer(self, presentations):
        self.orders += [presentation.options for presentation in presentations]
        return [self._one(presentation) for presentation in presentations]

    def _one(self, presentation):
        if self.fails and self.fails in presentation.caption:
            return None
        words = presentation.caption.split()
        return next(
            (i for i, option in enumerate(presentation.options) if option in words), len(presentation.options) - 1
        )


def test_mean_best_and_types():
    """Image 1: both questions from its first caption, one from its second; image 2: none from either."""
    answers = Words()
    result, segments = prism(SAMPLES, QUESTIONS, answers, CONFIG)
    assert result["mean"]["value"] == pytest.approx((3 / 4 + 0) / 2)
    assert result["best"]["value"] == pytest.approx((1 + 0) / 2)
    assert (
        result["types"]["colour"]["value"] == pytest.approx((1 + 0) / 2) and result["types"]["colour"]["questions"] == 2
    )
    assert result["types"]["shape"]["value"] == pytest.approx(1 / 2) and result["types"]["shape"]["questions"] == 1
    assert (result["images"], result["questions"], result["captions_per_image"], result["failed"]) == (2, 3, 2, 0)
    np.testing.assert_array_equal(segments["prism_mean"], [0.75, 0, np.nan])
    np.testing.assert_array_equal(segments["prism_best"], [1, 0, np.nan])
    assert all(options[-1] == CANNOT for options in answers.orders)
    assert {options[:-1] for options in answers.orders if "red" in options} == {("red", "blue"), ("blue", "red")}
    again = Words()
    prism(SAMPLES, QUESTIONS, again, CONFIG)
    assert again.orders == answers.orders


def config_with(share):
    return load_config(ROOT / "configs/demo/grpo.yaml", [f"caprl.max_failed={share}"])


def test_what_got_no_answer_is_left_out():
    """The second caption of each image gets none: three answers of six."""
    result, segments = prism(SAMPLES, QUESTIONS, Words(fails="thing"), config_with(0.5))
    assert result["failed"] == pytest.approx(3 / 6)
    np.testing.assert_array_equal(segments["prism_mean"], [1, 0, np.nan])
    with pytest.raises(RunStopped, match="3 of 6 questions got no answer"):
        prism(SAMPLES, QUESTIONS, Words(fails="thing"), config_with(0.4))
    one_left = {1: ["a thing", "a thing"], 2: ["a red ring", "a ring"]}
    result, segments = prism(one_left, QUESTIONS, Words(fails="thing"), config_with(0.7))
    assert np.isnan(segments["prism_mean"][0]) and result["mean"]["value"] == 0
    assert "shape" not in result["types"]


def test_questions_on_other_images_are_refused():
    with pytest.raises(InputError, match="has no question on an image of this split"):
        prism({3: ["a star", "a ring"]}, QUESTIONS, Words(), CONFIG)


def test_intervals_are_those_of_resampled_images():
    """By brute force: the ratio of sums in every resample."""
    totals, sizes = np.array([1.0, 0.0, 2.0, 3.0]), np.array([2.0, 1.0, 2.0, 4.0])
    counts = resampled(4, 1000)
    draws = [np.repeat(np.arange(4), row.astype(int)) for row in counts]
    ratios = [totals[draw].sum() / sizes[draw].sum() for draw in draws]
    found = interval(totals, sizes, counts)
    assert found["value"] == pytest.approx(6 / 9)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))


def test_the_reader_reads_english_only():
    assert isinstance(build_answerer(CONFIG.caprl, "en"), SceneReader)
    with pytest.raises(InputError, match=r"caprl\.answerer=reader reads only the demo's English"):
        build_answerer(CONFIG.caprl, "zh")
