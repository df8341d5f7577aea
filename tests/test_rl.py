"""The order of data in GRPO, and the reward of sampled ids."""

import numpy as np
import pytest
from test_cider import pycocoevalcap_cider, with_eos

from src.config import RewardConfig
from src.data.tokenizer import build_word_tokenizer
from src.rewards.caption_reward import CaptionReward
from src.training.rl import minibatches, rollout_images

TRUTHS = [
    ["a red circle on grass", "a red ball"],
    ["a blue square", "the small blue square on sand"],
    ["two stars in the sky", "a yellow star and a star"],
]


def test_rollouts_of_an_epoch_share_no_image():
    epoch = np.concatenate([rollout_images(10, 3, seed=1, index=index) for index in range(3)])
    assert len(set(epoch)) == 9
    again = np.concatenate([rollout_images(10, 3, seed=1, index=index) for index in range(3, 6)])
    assert (epoch != again).any()
    np.testing.assert_array_equal(rollout_images(10, 3, 1, 4), rollout_images(10, 3, 1, 4))


def test_a_pass_takes_every_image_once_in_another_order():
    first, second = (minibatches(12, 4, seed=1, index=0, number=number) for number in (0, 1))
    assert sorted(np.concatenate(first)) == list(range(12)) and {len(part) for part in first} == {4}
    assert (np.concatenate(first) != np.concatenate(second)).any()


def sampled(tokenizer, texts, length=7):
    """ids and masks as the sampler gives them; a text with a final '|' has no EOS."""
    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros(ids.shape, np.float32)
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text.rstrip("|")) + ([] if text.endswith("|") else [tokenizer.eos_id])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


@pytest.mark.parametrize("eos", [True, False])
def test_rewards_equal_pycocoevalcap_with_the_eos_as_a_word(eos):
    tokenizer = build_word_tokenizer([caption for truths in TRUTHS for caption in truths], 1)
    texts = ["a red circle", "a red circle|", "the blue square on sand", "a star and two stars", "a"]
    rows = np.array([0, 0, 1, 2, 2])
    rewards = CaptionReward(TRUTHS, tokenizer, RewardConfig(eos, "train"))(rows, *sampled(tokenizer, texts))
    truths = [with_eos(captions) for captions in TRUTHS] if eos else TRUTHS
    captions = [text.rstrip("|") if text.endswith("|") or not eos else with_eos([text])[0] for text in texts]
    expected = pycocoevalcap_cider(truths, [(caption, truths[row]) for row, caption in zip(rows, captions)])
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    assert (rewards[0] != rewards[1]) == eos  # a truncated caption has no EOS


def test_document_frequencies_of_the_batch_are_the_originals_defect():
    tokenizer = build_word_tokenizer([caption for truths in TRUTHS for caption in truths], 1)
    texts, rows = ["a blue square", "two stars"], np.array([1, 2])
    rewards = CaptionReward(TRUTHS, tokenizer, RewardConfig(False, "batch"))(rows, *sampled(tokenizer, texts))
    expected = pycocoevalcap_cider(TRUTHS[1:], [(text, TRUTHS[row]) for row, text in zip(rows, texts)])
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
