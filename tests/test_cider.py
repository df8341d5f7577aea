"""CIDEr-D against a hand-worked example and against pycocoevalcap's scorer."""

import math

import numpy as np
import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs

from src.rewards.cider import CiderD

EOS = "<eos>"


def pycocoevalcap_cider(documents, pairs):
    """pycocoevalcap's score of each (caption, ground truths) under the documents' frequencies and number."""

    class FixedScorer(CiderScorer):
        # compute_cider sets ref_len from its own images: a property keeps ours.
        ref_len = property(lambda self: math.log(len(documents)), lambda self, value: None)

    scorer = FixedScorer()
    for captions in documents:
        for ngram in {ngram for counts in cook_refs(captions) for ngram in counts}:
            scorer.document_frequency[ngram] += 1
    for caption, ground_truths in pairs:
        scorer += (caption, ground_truths)
    return np.array(scorer.compute_cider())


def random_sentences(rng, count, words, longest=12):
    return [" ".join(rng.choice(words, rng.integers(0, longest))) for _ in range(count)]


def with_eos(captions):
    return [f"{caption} {EOS}" for caption in captions]


def test_hand_worked_example():
    # Two documents; "a" is in both, all the rest in one. idf(a) = log 2 - log 2 = 0, every other idf = log 2 = L.
    # Caption "a dog" against "a dog runs" and "a dog":
    #   1-grams: caption {dog: L}. First ground truth {dog: L, runs: L}: L^2 / (L * L sqrt 2) = 1 / sqrt 2. Second: 1.
    #   2-grams: caption {a dog: L}. First {a dog: L, dog runs: L}: 1 / sqrt 2. Second: 1.
    #   3- and 4-grams: none in the caption, 0.
    # Lengths in bigrams: caption 1, ground truths 2 and 1: penalties exp(-1/72) and 1.
    # reward = 10/4 * (2/sqrt 2 * exp(-1/72) + 2) / 2
    scorer = CiderD([["a dog runs", "a dog"], ["a cat"]], eos=False)
    expected = 2.5 * (math.sqrt(2) * math.exp(-1 / 72) + 2) / 2
    rewards = scorer(np.array([0, 1]), [["a", "dog"], ["a", "dog"]], np.array([True, True]))
    assert rewards == pytest.approx([expected, 0.0], abs=1e-12)
    assert rewards.dtype == np.float64


def test_hand_worked_clipping_and_eos():
    # Documents {x} and {y}, each with EOS: idf(EOS) = 0, every other idf = L = log 2.
    # Caption "x x" without EOS (truncated), ground truth "x EOS":
    #   1-grams: caption {x: 2L}, ground truth {x: L, EOS: 0}: min(2L, L) * L / (2L * L) = 1/2. 2-grams: "x x" is not
    #   in "x EOS". Lengths 1 and 1, no penalty: reward 2.5 * 1/2.
    # Caption "x" with EOS: 1-grams 1, 2-grams {x EOS: L} 1: reward 2.5 * 2.
    scorer = CiderD([["x"], ["y"]], eos=True)
    rewards = scorer(np.array([0, 0]), [["x", "x"], ["x"]], np.array([False, True]))
    assert rewards == pytest.approx([1.25, 5.0], abs=1e-12)


@pytest.mark.parametrize("eos", [False, True])
def test_equals_pycocoevalcap(eos):
    rng = np.random.default_rng(0)
    words = ["a", "a", "the", "dog", "cat", "runs", "on", "grass", "red"]
    documents = [random_sentences(rng, rng.integers(1, 6), words) for _ in range(40)]
    rows = rng.integers(0, len(documents), 400)
    captions = random_sentences(rng, 400, [*words, "bus", "unknown", "unseen"])
    captions[:5] = ["", "a", "unknown", "unknown unknown unseen unknown", "dog dog dog dog dog"]
    captions[5:50] = [documents[row][0] for row in rows[5:50]]
    ended = rng.random(400) < 0.7
    scorer = CiderD(documents, eos=eos)
    rewards = scorer(rows, [caption.split() for caption in captions], ended)
    if eos:
        documents = [with_eos(captions) for captions in documents]
        captions = [f"{caption} {EOS}" if end else caption for caption, end in zip(captions, ended, strict=True)]
    expected = pycocoevalcap_cider(documents, [(c, documents[row]) for c, row in zip(captions, rows, strict=True)])
    assert expected.max() > 5 and np.count_nonzero(expected) > 200
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-6)


def test_rewards_do_not_depend_on_the_batch():
    scorer = CiderD([["a dog runs"], ["a cat sits", "the cat"]], eos=True)
    together = scorer(np.array([1, 0, 1]), [["a", "cat"], ["new", "dog"], ["new", "cat"]], np.ones(3, bool))
    alone = [
        scorer(np.array([row]), [words], np.ones(1, bool))[0]
        for row, words in [(1, ["a", "cat"]), (0, ["new", "dog"]), (1, ["new", "cat"])]
    ]
    assert together == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("eos", [False, True])
def test_nothing_to_score(eos):
    scorer = CiderD([["", ""], [""]], eos=eos)
    assert list(scorer(np.array([1]), [["a"]], np.array([False]))) == [0.0]
    assert list(scorer(np.array([0]), [[]], np.array([False]))) == [0.0]
    assert scorer(np.zeros(0, int), [], np.zeros(0, bool)).shape == (0,)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="image row 1"):
        CiderD([["a"], []], eos=True)
    with pytest.raises(ValueError, match="at least one image"):
        CiderD([], eos=True)
    scorer = CiderD([["a"]], eos=True)
    for rows, completions, ended in [([1], [["a"]], [True]), ([0], ["a"], [True]), ([0, 0], [["a"]], [True])]:
        with pytest.raises(ValueError):
            scorer(np.array(rows), completions, np.array(ended))
