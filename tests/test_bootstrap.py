"""Resampled corpus scores against pycocoevalcap on the resampled corpus itself."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from test_caption_metrics import no_spice, scenes, scores  # noqa: F401  fixtures

from src.data.words import ENGLISH
from src.evaluation.bootstrap import average_seeds, corpus_metrics, meteor_score, paired_differences, whole_split
from src.evaluation.java_metrics import meteor_child


def test_the_whole_split_gives_the_whole_scores(scores):  # noqa: F811
    whole = corpus_metrics(scores.segments, np.ones((1, 20)))
    assert {name: values[0] for name, values in whole.items()} == pytest.approx(scores.metrics, abs=1e-9)


def test_a_resample_is_scored_as_pycocoevalcap_scores_it(scores):  # noqa: F811
    draw = np.random.default_rng(3).integers(0, 20, 20)
    counts = np.bincount(draw, minlength=20)[None].astype(float)
    captions, truths = scenes()
    truths = ENGLISH.tokenize_images(truths)
    results = {key: [line] for key, line in zip(captions, ENGLISH.tokenize(list(captions.values())))}
    ids = list(results)
    resampled_truths = {place: truths[ids[image]] for place, image in enumerate(draw)}
    resampled_results = {place: results[ids[image]] for place, image in enumerate(draw)}
    bleu, _ = Bleu(4).compute_score(resampled_truths, resampled_results, verbose=0)
    mine = corpus_metrics(scores.segments, counts)
    np.testing.assert_allclose([mine[f"Bleu_{n}"][0] for n in range(1, 5)], bleu, rtol=1e-9)
    with meteor_child() as meteor:
        one_field = {key: [text.replace("|||", " ") for text in texts] for key, texts in resampled_truths.items()}
        one_result = {key: [text.replace("|||", " ") for text in texts] for key, texts in resampled_results.items()}
        score, _ = meteor.compute_score(one_field, one_result)
    assert mine["METEOR"][0] == pytest.approx(score, abs=1e-9)


def test_meteor_by_hand():
    # 8 and 10 words, 3 and 5 of them function words; 3 content and 3 function words match exactly, in 4 chunks.
    # P = 3 / (.75*5 + .25*3), R = 3 / (.75*5 + .25*5); F = 1 / (.15/P + .85/R); times 1 - .6 (4/6)^.2
    row = np.array([[8, 10, 3, 5, 3, 3, 3, 3, *[0] * 12, 4, 6, 6]], float)
    fmean = 1 / (0.15 / (3 / 4.5) + 0.85 / (3 / 5))
    assert meteor_score(row)[0] == pytest.approx(fmean * (1 - 0.6 * (4 / 6) ** 0.2))


def flat(cider, images=50):
    """Segment statistics whose only varying metric is CIDEr."""
    bleu, meteor = np.ones((images, 10)), np.zeros((images, 23))
    return {"bleu": bleu, "meteor": meteor, "CIDEr": np.asarray(cider, float)}


def test_the_interval_of_a_paired_difference():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 50)  # how hard an image is, for both alike: pairing takes it out
    gain = rng.normal(0.5, 1.0, 50)
    result = paired_differences(flat(hard + gain), flat(hard), resamples=4000)["CIDEr"]
    error = gain.std() / np.sqrt(50)  # the normal interval of a mean of 50
    assert result["mean"] == pytest.approx(gain.mean())
    assert result["low"] == pytest.approx(gain.mean() - 1.96 * error, abs=0.15 * error)
    assert result["high"] == pytest.approx(gain.mean() + 1.96 * error, abs=0.15 * error)
    equal = paired_differences(flat(hard), flat(hard), resamples=100)
    assert all(values == {"mean": 0, "low": 0, "high": 0} for values in equal.values())


def test_the_interval_of_a_metric_that_few_images_have():
    """One image of 50 has questions: resamples without it tell nothing, all others the same."""
    nan = [np.nan] * 49
    some, other = (flat(np.zeros(50)) | {"prism_mean": np.array([value, *nan])} for value in (0.75, 0.5))
    assert paired_differences(some, other, resamples=50)["prism_mean"] == {"mean": 0.25, "low": 0.25, "high": 0.25}


def test_metrics_that_were_left_out_have_no_interval():
    system, other = ({"CIDEr": np.array(values)} for values in ([1.0, 2.0], [0.5, 1.5]))
    result = paired_differences(system, other, resamples=10)
    assert list(result) == ["CIDEr"] and result["CIDEr"]["mean"] == 0.5 and whole_split(system) == {"CIDEr": 1.5}


def test_seeds_are_averaged_image_by_image():
    mean = average_seeds([flat([1, 2], 2), flat([3, 6], 2)])
    assert mean["CIDEr"].tolist() == [2, 4]
