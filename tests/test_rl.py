"""The order of data in GRPO."""

import numpy as np

from src.rl.collector import rollout_images
from src.training.loop import minibatches


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
