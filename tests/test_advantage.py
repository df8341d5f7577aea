import numpy as np
import pytest

from src.config.schema import AdvantageConfig
from src.rl.advantage import (
    combined_advantages,
    fill_missing,
    gdpo_advantages,
    group_advantages,
    total_rewards,
    zero_advantage_groups,
)

REWARDS = np.array([[1.0, 2.0, 3.0, 6.0], [0.7, 0.7, 0.7, 0.7]])
NAN = np.nan
ONE = np.ones(1)


def settings(baseline="group", scale="population", eps=1e-5, combine="sum"):
    return AdvantageConfig(combine, baseline, scale, eps)


def advantages(rewards=REWARDS, **chosen):
    return group_advantages(rewards, settings(**chosen))


def test_hand_worked_groups():
    # mean 3, deviations -2 -1 0 3: sum of squares 14; population std sqrt(14/4), sample std sqrt(14/3)
    deviations = np.array([-2, -1, 0, 3])
    np.testing.assert_allclose(advantages()[0], deviations / (np.sqrt(3.5) + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(advantages(scale="sample")[0], deviations / (np.sqrt(14 / 3) + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(advantages(scale="none")[0], deviations, rtol=1e-6)
    # leave one out: 1 - (2+3+6)/3 = -8/3 and so on
    loo = advantages(baseline="leave_one_out", scale="none")[0]
    np.testing.assert_allclose(loo, [1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3], rtol=1e-6)


@pytest.mark.parametrize("scale", ["population", "sample", "none"])
def test_equal_rewards_give_exactly_zero_and_are_counted(scale):
    assert (advantages(scale=scale)[1] == 0).all()
    assert (advantages(np.full((1, 3), 0.1), scale=scale) == 0).all()  # the mean of three 0.1 is not 0.1
    assert zero_advantage_groups(advantages(scale=scale), 4) == 1


def test_greedy_baseline_is_each_images_own():
    # 1-2, 2-2, 3-2, 6-2; then 0.7 - 0.2 four times: equal rewards do teach something here
    chosen = settings("greedy", "none")
    result = combined_advantages(REWARDS[..., None], ONE, chosen, np.array([[2.0], [0.2]]))
    np.testing.assert_allclose(result, [-1, 0, 1, 4, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    assert zero_advantage_groups(result, 4) == 0


def test_one_reward_of_weight_one_is_that_reward():
    flat = combined_advantages(REWARDS[..., None], ONE, settings(scale="none"))
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat[:4], [-2, -1, 0, 3])  # rows are image-major


def test_the_sum_weighs_the_raw_rewards():
    rewards = np.stack([REWARDS, REWARDS[::-1]], -1)  # [2, 4, 2]
    # 2 * (1 2 3 6) - 0.7, and 2 * 0.7 - (1 2 3 6): deviations of both are those of (1 2 3 6), times 2 and 1/2
    result = combined_advantages(rewards, np.array([2.0, 0.5]), settings(scale="none"))
    np.testing.assert_allclose(result, [-4, -2, 0, 6, -1, -0.5, 0, 1.5], rtol=1e-6)
    greedy = np.array([[1.0, 2.0], [0.0, 0.0]])  # totals 2*1 + 0.5*2 = 3 and 0
    against = combined_advantages(rewards, np.array([2.0, 0.5]), settings("greedy", "none"), greedy)
    np.testing.assert_allclose(against[:4], [2 + 0.35 - 3, 4 + 0.35 - 3, 6 + 0.35 - 3, 12 + 0.35 - 3], rtol=1e-6)


# Two binary rewards: in the first group one caption has one of them, in the second both, in the third one has each.
COLLAPSE = np.array([[[0, 0], [0, 1]], [[0, 0], [1, 1]], [[1, 0], [0, 1]]], np.float64)


def test_the_sum_collapses_what_gdpo_keeps_apart():
    """The paper's example: a caption with both rewards above one with none gets as much as one with one."""
    weights = np.ones(2)
    summed = combined_advantages(COLLAPSE, weights, settings(eps=1e-12)).reshape(3, 2)
    np.testing.assert_allclose(summed, [[-1, 1], [-1, 1], [0, 0]], atol=1e-6)
    # GDPO: 0 0 + -1 1 | -1 1 + -1 1 | 1 -1 + -1 1, over the std of all six, sqrt((1+1+4+4) / 6)
    result = combined_advantages(COLLAPSE, weights, settings(eps=1e-12, combine="gdpo")).reshape(3, 2)
    np.testing.assert_allclose(result, np.array([[-1, 1], [-2, 2], [0, 0]]) / np.sqrt(10 / 6), atol=1e-6)
    # weights 3 and 1: -1 1 | -3 3 + -1 1 | 3 -3 + -1 1
    weighted = gdpo_advantages(COLLAPSE, np.array([3.0, 1.0]), settings(eps=1e-12))
    np.testing.assert_allclose(weighted, np.array([[-1, 1], [-4, 4], [2, -2]]) / np.sqrt(42 / 6), atol=1e-6)


def published_gdpo(rewards, weights, eps):
    """Equations of arXiv:2601.05242 one number at a time, with the mean over the batch."""
    images, group_size, kinds = rewards.shape
    sums = np.zeros((images, group_size))
    for b in range(images):
        for k in range(kinds):
            group = rewards[b, :, k]
            for g in range(group_size):
                sums[b, g] += weights[k] * (group[g] - group.sum() / group_size) / (group.std() + eps)
    return (sums - sums.mean()) / (sums.std() + eps)


def test_gdpo_is_the_published_one_over_the_whole_rollout():
    rewards = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32).astype(np.float64)
    rewards *= np.array([10.0, 1.0, 0.01])  # the size of a reward does not count
    weights = np.array([1.0, 0.5, 2.0])
    rewards = rewards.astype(np.float32)
    ours = combined_advantages(rewards, weights, settings(combine="gdpo"))
    np.testing.assert_allclose(ours.reshape(6, 5), published_gdpo(rewards.astype(np.float64), weights, 1e-5), atol=1e-5)
    assert abs(ours.std() - 1) < 1e-4
    halves = [combined_advantages(half, weights, settings(combine="gdpo")) for half in np.split(rewards, 2)]
    assert np.abs(np.concatenate(halves) - ours).max() > 1e-3  # so workers must gather before, not after


def test_a_missing_reward_is_the_mean_of_its_group_and_moves_no_other():
    rewards = np.array([[[1.0], [2.0], [NAN], [6.0]]])
    np.testing.assert_allclose(fill_missing(rewards)[0, :, 0], [1, 2, 3, 6])
    result = combined_advantages(rewards, ONE, settings(scale="none"))
    np.testing.assert_allclose(result, [-2, -1, 0, 3], atol=1e-6)
    loo = combined_advantages(rewards, ONE, settings("leave_one_out", "none"))
    np.testing.assert_allclose(loo, np.array([-2, -1, 0, 3]) * 4 / 3, atol=1e-6)
    equal = np.array([[[0.1], [NAN], [0.1], [0.1]]], np.float32)
    for combine in ("sum", "gdpo"):
        assert (combined_advantages(equal, ONE, settings(combine=combine)) == 0).all()


def test_a_group_without_a_reward():
    """The sum does not exist there; under GDPO the reward adds nothing, and the other keeps its size."""
    both = np.stack([REWARDS[[0, 0, 0]], np.array([[1.0, 2, 3, 6], [NAN] * 4, [6.0, 3, 2, 1]])], -1)
    weights = np.ones(2)
    assert np.isnan(total_rewards(both, weights)).all(1).tolist() == [False, True, False]
    summed = combined_advantages(both, weights, settings()).reshape(3, 4)
    assert (summed[1] == 0).all() and (summed[0] != 0).any()
    assert zero_advantage_groups(summed, 4) == 1
    one = group_advantages(REWARDS[:1], settings())[0]
    raw = np.stack([2 * one, one, one + group_advantages(both[2:, :, 1], settings())[0]])
    result = gdpo_advantages(both, weights, settings())
    np.testing.assert_allclose(result, raw / (raw.std() + 1e-5), rtol=1e-6)
    everything = np.full((2, 3, 1), NAN)
    for combine in ("sum", "gdpo"):
        assert (combined_advantages(everything, ONE, settings(combine=combine)) == 0).all()


def test_without_a_greedy_reward_there_is_no_advantage():
    rewards, chosen = np.array([[[1.0]], [[2.0]], [[NAN]]]), settings("greedy", "none")
    result = combined_advantages(rewards, ONE, chosen, np.array([[NAN], [0.5], [0.5]]))
    np.testing.assert_allclose(result, [0, 1.5, 0])
