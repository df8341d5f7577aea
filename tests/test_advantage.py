import numpy as np
import pytest

from src.config import AdvantageConfig
from src.rl.advantage import group_advantages, zero_advantage_groups

REWARDS = np.array([[1.0, 2.0, 3.0, 6.0], [0.7, 0.7, 0.7, 0.7]])


def advantages(rewards=REWARDS, baseline="group", scale="population", eps=1e-5):
    return group_advantages(rewards, AdvantageConfig(baseline, scale, eps)).reshape(rewards.shape)


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
    assert zero_advantage_groups(group_advantages(REWARDS, AdvantageConfig("group", scale, 1e-5)), 4) == 1


def test_greedy_baseline_is_each_images_own():
    # 1-2, 2-2, 3-2, 6-2; then 0.7 - 0.2 four times: equal rewards do teach something here
    config = AdvantageConfig("greedy", "none", 1e-5)
    result = group_advantages(REWARDS, config, np.array([2.0, 0.2]))
    np.testing.assert_allclose(result, [-1, 0, 1, 4, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    assert zero_advantage_groups(result, 4) == 0


def test_rows_are_image_major_and_float32():
    flat = group_advantages(REWARDS, AdvantageConfig("group", "none", 1e-5))
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat[:4], [-2, -1, 0, 3])
