"""The rewards of sampled ids, alone and together."""

import dataclasses

import numpy as np
import pytest
from test_cider import pycocoevalcap_cider, with_eos
from tiny import ROOT

from src.config.load import load_config
from src.config.schema import CiderConfig, LengthConfig, RewardsConfig
from src.data.tokenizer import build_word_tokenizer, decode_completions
from src.rewards import length as shape
from src.rewards.completions import Completions
from src.rewards.mixture import Rewards, build_cider, reward_signature
from src.runtime.errors import InputError

TRUTHS = [
    ["a red circle on grass", "a red ball"],
    ["a blue square", "the small blue square on sand"],
    ["two stars in the sky", "a yellow star and a star"],
]


def decoded(tokenizer, rows, texts, length=7):
    """Completions from ids and masks as the sampler gives them; a text with a final '|' has no EOS."""
    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros(ids.shape, np.float32)
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text.rstrip("|")) + ([] if text.endswith("|") else [tokenizer.eos_id])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return Completions(0, np.arange(len(rows)), rows, *decode_completions(tokenizer, [tokenizer.eos_id], ids, mask))


@pytest.mark.parametrize("eos", [True, False])
def test_rewards_equal_pycocoevalcap_with_the_eos_as_a_word(eos):
    tokenizer = build_word_tokenizer([caption for truths in TRUTHS for caption in truths], 1)
    texts = ["a red circle", "a red circle|", "the blue square on sand", "a star and two stars", "a"]
    rows = np.array([0, 0, 1, 2, 2])
    rewards = build_cider(TRUTHS, CiderConfig(eos, "train"))(decoded(tokenizer, rows, texts))
    truths = [with_eos(captions) for captions in TRUTHS] if eos else TRUTHS
    captions = [text.rstrip("|") if text.endswith("|") or not eos else with_eos([text])[0] for text in texts]
    expected = pycocoevalcap_cider(truths, [(caption, truths[row]) for row, caption in zip(rows, captions)])
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    assert (rewards[0] != rewards[1]) == eos  # a truncated caption has no EOS


def test_document_frequencies_of_the_batch_are_the_originals_defect():
    tokenizer = build_word_tokenizer([caption for truths in TRUTHS for caption in truths], 1)
    texts, rows = ["a blue square", "two stars"], np.array([1, 2])
    rewards = build_cider(TRUTHS, CiderConfig(False, "batch"))(decoded(tokenizer, rows, texts))
    expected = pycocoevalcap_cider(TRUTHS[1:], [(text, TRUTHS[row]) for row, text in zip(rows, texts)])
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


def completions(*captions):
    rows = np.arange(len(captions))
    return Completions(0, rows, 0 * rows, list(captions), np.ones(len(captions), bool))


def test_length_is_free_within_its_range_and_falls_evenly_outside():
    words = [0, 1, 2, 3, 5, 6, 7, 8, 20]  # 3 to 5 are free, and 2 words outside are the worst
    rewards = shape.length(completions(*(" ".join(["a"] * n) for n in words)), LengthConfig(3, 5, 2))
    assert rewards.tolist() == [-1, -1, -0.5, 0, 0, -0.5, -1, -1, -1]


def test_repetition_counts_trigrams_that_come_again():
    # "a b c a b c a": abc bca cab abc bca, 3 of 5 distinct; "a a a a": aaa twice; two words have no trigram
    rewards = shape.repetition(completions("a b c a b c a", "a a a a", "a man on a horse", "a a", ""))
    np.testing.assert_allclose(rewards, [-2 / 5, -1 / 2, 0, 0, 0])


def split_all(captions):
    return [caption.split() for caption in captions]


def grpo(*overrides):
    return load_config(ROOT / "configs/demo/grpo.yaml", overrides)


def test_only_rewards_with_a_weight_are_computed_in_the_order_of_the_weights():
    texts = ["a red circle on grass", "two two two two"]
    decode = lambda ids, mask: (texts, np.ones(2, bool))  # noqa: E731
    settings = grpo("rewards.repetition=0.5", "rewards.length=2")
    rewards = Rewards(settings, dict(zip((7, 8, 9), TRUTHS)), decode, split_all, None)
    assert rewards.names == ("cider", "length", "repetition") and rewards.weights.tolist() == [1, 2, 0.5]
    given = completions(*texts)
    _, table = rewards(0, given.rows, given.image_rows, None, None)
    assert table.dtype == np.float32 and table.shape == (2, 3)
    np.testing.assert_allclose(table[:, 0], build_cider(TRUTHS, CiderConfig(True, "train"))(given), rtol=1e-6)
    np.testing.assert_allclose(table[:, 1:], [[-1 / 4, 0], [-2 / 4, -1 / 2]])  # 5 and 4 words of at least 6
    # CIDEr would refuse an empty training split.
    alone = Rewards(grpo("rewards.cider=0", "rewards.repetition=1"), {}, decode, split_all, None)
    assert alone.names == ("repetition",)
    assert alone(0, given.rows, given.image_rows, None, None)[1][1].tolist() == [-0.5]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["advantage.combine=gdpo", "advantage.scale=none"], ["advantage.combine=gdpo", "advantage.baseline=group"]),
        (
            ["advantage.combine=gdpo", "advantage.baseline=greedy", "advantage.scale=none"],
            ["advantage.combine=gdpo", "advantage.baseline=group"],
        ),
        (["rewards.cider=0"], ["rewards.cider=0.0", "another weight"]),
        (["rewards.length=-1"], ["rewards.length=-1.0", "not be negative"]),
        (["length.least=9", "length.most=8"], ["length.most=8", "length.least=9"]),
        (["rewards.caprl=1", "caprl.questions=null"], ["caprl.questions=None", "rewards.caprl"]),
        (["rewards.caprl=1", "caprl.questions=q", "caprl.answerer=server"], ["caprl.model=None"]),
        (["caprl.max_failed=1"], ["caprl.max_failed=1.0", "below 1"]),
        (["rewards.ciderd=1"], ["rewards.ciderd", "rewards.cider"]),
    ],
)
def test_mixtures_that_mean_nothing_are_refused(overrides, words):
    with pytest.raises(InputError) as error:
        grpo(*overrides)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_signatures_name_the_mixture():
    assert reward_signature(grpo()) == "STANDARD_wInit+Cider-D[n4,s6.0]+group[nspi5]"
    mixed = grpo("rewards.cider=0.5", "rewards.length=1", "rewards.repetition=1", "advantage.combine=gdpo")
    assert reward_signature(mixed) == (
        "STANDARD_wInit+gdpo(0.5*Cider-D[n4,s6.0]+1*length[6-16,4]+1*repetition[n3])+group[nspi5]"
    )
    without = grpo("rewards.cider=0", "rewards.repetition=1")
    assert reward_signature(without) == "sum(1*repetition[n3])+group[nspi5]"
    asked = grpo("rewards.cider=0", "rewards.caprl=1", "caprl.questions=q", "caprl.answerer=server", "caprl.model=m")
    assert reward_signature(asked) == "sum(1*CapRL[n4,m:letter])+group[nspi5]"
    asked = dataclasses.replace(asked, caprl=dataclasses.replace(asked.caprl, extra_body='{"top_k": 1}'))
    assert reward_signature(asked) == 'sum(1*CapRL[n4,m:letter, {"top_k": 1}])+group[nspi5]'
    everything = grpo(*(f"rewards.{field.name}=1" for field in dataclasses.fields(RewardsConfig)), "caprl.questions=q")
    assert reward_signature(everything).count("1*") == len(dataclasses.fields(RewardsConfig))
