"""From the rewards of a whole rollout to its advantages, on the host in float64.

Letters: B images, G group size, k rewards. A missing reward (a failed answering model) is NaN.
"""

import numpy as np

from src.config.schema import AdvantageConfig


def combined_advantages(
    rewards: np.ndarray, weights: np.ndarray, config: AdvantageConfig, greedy_rewards: np.ndarray | None = None
) -> np.ndarray:
    """Advantages float32 [B*G], row = b*G + g, of rewards float32 [B, G, k] with weights [k].

    combine `sum`: the weighted sum of the raw rewards is one reward (`group_advantages`).
    combine `gdpo`: each reward is normalised in its group before they are added (`gdpo_advantages`).
    greedy_rewards [B, k] are for baseline `greedy` alone. A missing reward is filled in by `fill_missing`.
    """
    if config.combine == "gdpo":
        advantages = gdpo_advantages(rewards, weights, config)
    else:
        greedy = None if greedy_rewards is None else total_rewards(greedy_rewards[:, None], weights)[:, 0]
        advantages = group_advantages(total_rewards(rewards, weights), config, greedy)
    return advantages.astype(np.float32).reshape(-1)


def fill_missing(rewards: np.ndarray) -> np.ndarray:
    """Rewards float64 [B, G, k] of float32 ones; a missing one (NaN) becomes the mean of its kind in its group.

    So it is neither a success nor a failure, and does not move the group's mean. Where the group has none, NaN stays.
    """
    rewards = rewards.astype(np.float64)  # in which the mean of equal float32 numbers is exact
    found = np.isfinite(rewards)
    count = found.sum(1, keepdims=True)  # [B, 1, k]
    sums = np.where(found, rewards, 0.0).sum(1, keepdims=True)
    means = np.divide(sums, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.where(found, rewards, means)


def total_rewards(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums float64 [B, G] of rewards [B, G, k], `fill_missing` applied.

    A group that wholly lacks one of them gets NaN: its total does not exist, and the rest of the mixture, scaled to the
    group's spread, would teach another goal.
    """
    return (fill_missing(rewards) * weights).sum(-1)


def group_advantages(
    rewards: np.ndarray, config: AdvantageConfig, greedy_rewards: np.ndarray | None = None
) -> np.ndarray:
    """Advantages float64 [B, G] of one reward [B, G]; 0 in a group that holds NaN. greedy_rewards [B]: for
    baseline `greedy` alone.

    baseline `group`: A = (r - mean) / (std + eps), GRPO (arXiv:2402.03300, section 4.1.2), with the standard deviation
    of the population or of the sample, or without the division.
    baseline `leave_one_out`: A = r - mean of the other G - 1 (Luo 2020, arXiv:2003.09971), never divided.
    baseline `greedy`: A = r - the greedy caption's reward, SCST (Rennie et al. 2017, arXiv:1612.00563, equation 9).
    With the first two, a group of equal rewards gives exactly 0.
    """
    rewards = rewards.astype(np.float64)
    group_size = rewards.shape[1]
    if greedy_rewards is not None:
        centred = rewards - greedy_rewards[:, None]
    else:
        centred = rewards - rewards.mean(1, keepdims=True)
        centred[np.ptp(rewards, axis=1) == 0] = 0.0  # the mean of equal numbers may differ from them by rounding
    if config.baseline == "leave_one_out":
        centred = centred * (group_size / (group_size - 1))
    elif config.scale != "none":
        deviation = rewards.std(1, ddof=int(config.scale == "sample"), keepdims=True)
        centred = centred / (deviation + config.eps)
    return np.where(np.isnan(centred), 0.0, centred)


def gdpo_advantages(rewards: np.ndarray, weights: np.ndarray, config: AdvantageConfig) -> np.ndarray:
    """GDPO (arXiv:2601.05242): advantages float64 [B, G] of rewards [B, G, k] of a whole rollout, of all workers.

    A = sum_k weight_k A_k / (std over the rollout + eps), with A_k = (r_k - mean) / (std + eps) in each group. The mean
    over the rollout, which the paper subtracts, is 0: every group's A_k sum to 0. A reward that a whole group lacks
    adds 0 there, the others keep their size.
    """
    filled = fill_missing(rewards)
    parts = [weight * group_advantages(filled[:, :, k], config) for k, weight in enumerate(weights)]
    combined = np.sum(parts, axis=0)  # [B, G]
    return combined / (combined.std() + config.eps)


def zero_advantage_groups(advantages: np.ndarray, group_size: int) -> int:
    """How many groups of advantages [B*G] are all 0 and so teach nothing."""
    return int((advantages.reshape(-1, group_size) == 0).all(1).sum())
