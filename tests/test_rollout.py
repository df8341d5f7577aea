import numpy as np

from src.rl.rollout import Rollout


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
