import numpy as np
import pytest

from src.rl.rollout import Rollout, moments


def test_groups_take_whole_groups_in_row_order():
    rows = np.arange(6)  # 3 images, G = 2, row = b*G + g
    table = np.stack([rows, rows * 10], 1)
    rollout = Rollout(
        image_rows=np.array([7, 8, 9]),
        completion_ids=table,
        completion_mask=table + 0.5,
        old_logprobs=-table,
        ref_logprobs=-2 * table,
        rewards=rows.reshape(3, 2),
        advantages=rows.astype(np.float32),
    )
    part = rollout.groups(np.array([2, 0]))
    assert part.image_rows.tolist() == [9, 7]
    assert part.advantages.tolist() == [4, 5, 0, 1]
    assert part.completion_ids[:, 0].tolist() == part.completion_mask[:, 0].astype(int).tolist() == [4, 5, 0, 1]
    assert part.old_logprobs[:, 1].tolist() == [-40, -50, 0, -10]
    assert part.ref_logprobs[:, 1].tolist() == [-80, -100, 0, -20]
    assert part.rewards.tolist() == [[4, 5], [0, 1]]


@pytest.mark.filterwarnings("error")
def test_missing_rewards_do_not_count():
    assert moments(np.array([[1, np.nan], [4, 7]])) == pytest.approx((4, np.sqrt(6)))
    assert all(np.isnan(moments(np.full((2, 2), np.nan))))
