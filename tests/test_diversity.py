"""Diversity of sampled captions against hand-worked numbers and pycocoevalcap."""

import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from src.evaluation.diversity import (
    best_cider,
    broken_endings,
    distinct_ngrams,
    diversity,
    document_frequencies,
    mutual_bleu,
    self_cider,
)

SAMPLES = {
    7: ["a dog runs", "a dog runs", "a cat sleeps"],
    9: ["two men on a boat", "two people in a small boat", "a boat"],
}
TRUTHS = {7: ["a dog runs fast", "the dog is running"], 9: ["two people on a boat", "a boat with two men"]}


def test_distinct_ngrams_by_hand():
    # 9 words; distinct: a dog runs cat sleeps; bigrams: "a dog", "dog runs", "a cat", "cat sleeps"
    assert distinct_ngrams(SAMPLES[7], 1) == pytest.approx(5 / 9)
    assert distinct_ngrams(SAMPLES[7], 2) == pytest.approx(4 / 9)
    assert distinct_ngrams(["", ""], 1) == 0


def test_mutual_bleu_is_pycocoevalcaps_bleu_against_the_others():
    expected = []
    for g in range(3):
        others = {key: [caption for i, caption in enumerate(rows) if i != g] for key, rows in SAMPLES.items()}
        expected.append(Bleu(4).compute_score(others, {k: [rows[g]] for k, rows in SAMPLES.items()}, verbose=0)[0][3])
    assert mutual_bleu(SAMPLES) == pytest.approx(np.mean(expected))
    assert mutual_bleu({1: ["a b c d e", "a b c d e"]}) == pytest.approx(1)


def test_best_cider_is_the_mean_of_each_images_best():
    scores = [Cider().compute_score(TRUTHS, {key: [rows[g]] for key, rows in SAMPLES.items()})[1] for g in range(3)]
    assert best_cider(SAMPLES, TRUTHS) == pytest.approx(np.max(scores, 0).mean())


def test_self_cider_at_its_ends_and_by_hand():
    documents = document_frequencies([["a b c d e"], ["f g h i j"], ["k"]])
    assert self_cider(["a b c d e"] * 3, documents, 3) == pytest.approx(0, abs=1e-6)
    assert self_cider(["a b c d", "e f g h", "i j k l"], documents, 3) == pytest.approx(1)
    # "a b" and "a c": words of one image each, so equal idf. Cosines: 1-grams 1/2, 2-grams 0, longer ones have none.
    # Kernel: diagonal (1 + 1 + 0 + 0) / 4, beside it 1/8; eigenvalues 5/8 and 3/8.
    documents = document_frequencies([["a b"], ["a c"], ["d"]])
    documents[0].update({("b",): 1, ("c",): 1})  # as often as "a": in two images
    large, small = math.sqrt(5 / 8), math.sqrt(3 / 8)
    expected = -math.log(large / (large + small)) / math.log(2)
    assert self_cider(["a b", "a c"], documents, 3) == pytest.approx(expected)


def test_self_cider_weighs_by_count_and_rarity():
    # 4 images: "a" in 2 of them (and twice in one), "b" and "c" in 1: idf log 2, log 4, log 4, as 1 to 2 to 2
    documents = document_frequencies([["a", "a b"], ["a"], ["c"], ["d"]])
    # 1-grams: (2, 2, 0) for "a a b", (1, 0, 2) for "a c": cosine 2 / (sqrt 8 sqrt 5). No 2-gram in common.
    # The first has a 3-gram, the second none: diagonal 3/4 and 2/4.
    beside = 2 / math.sqrt(40) / 4
    eigenvalues = np.linalg.eigvalsh([[3 / 4, beside], [beside, 2 / 4]])
    share = math.sqrt(eigenvalues[1]) / (math.sqrt(eigenvalues[0]) + math.sqrt(eigenvalues[1]))
    assert self_cider(["a a b", "a c"], documents, 4) == pytest.approx(-math.log(share) / math.log(2))


def test_endings_and_the_whole_table():
    assert broken_endings(["a man on a", "a man", "", "the dog with"]) == 0.5
    table = diversity(SAMPLES, TRUTHS, {"a dog runs"})
    assert table["novel"] == pytest.approx(4 / 6)
    assert table["vocabulary"] == len({word for rows in SAMPLES.values() for row in rows for word in row.split()})
    assert table["Div-1"] == pytest.approx((5 / 9 + distinct_ngrams(SAMPLES[9], 1)) / 2)
    assert table["Div-2"] == pytest.approx((4 / 9 + distinct_ngrams(SAMPLES[9], 2)) / 2)
    assert table["mBLEU"] == pytest.approx(mutual_bleu(SAMPLES)) and table["mBLEU"] > 0
    assert table["best-CIDEr"] == pytest.approx(best_cider(SAMPLES, TRUTHS)) and table["best-CIDEr"] > 0
    documents = document_frequencies(TRUTHS.values())
    assert table["self-CIDEr"] == pytest.approx(np.mean([self_cider(rows, documents, 2) for rows in SAMPLES.values()]))
    assert list(table) == ["Div-1", "Div-2", "mBLEU", "self-CIDEr", "vocabulary", "novel", "best-CIDEr"]
