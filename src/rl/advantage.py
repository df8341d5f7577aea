"""Group-relative advantages on the host, in float64."""

import numpy as np

from src.config import AdvantageConfig


def group_advantages(
    rewards: np.ndarray, config: AdvantageConfig, greedy_rewards: np.ndarray | None = None
) -> np.ndarray:
    """Advantages float32 [B*G] of rewards [B, G], row = b*G + g. greedy_rewards [B] are for baseline `greedy` alone.

    baseline `group`: A = (r - mean) / (std + eps), GRPO (arXiv:2402.03300, section 4.1.2), with the standard deviation
    of the population or of the sample, or without the division.
    baseline `leave_one_out`: A = r - mean of the other G - 1 (Luo 2020, arXiv:2003.09971), never divided.
    baseline `greedy`: A = r - the greedy caption's reward, SCST (Rennie et al. 2017, arXiv:1612.00563, equation 9).
    With the first two, a group of equal rewards gives exactly 0.
    """
    if config.baseline == "greedy":
        return (rewards - greedy_rewards[:, None]).astype(np.float32).reshape(-1)
    rewards = rewards.astype(np.float64)
    group_size = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdims=True)
    centred[np.ptp(rewards, axis=1) == 0] = 0.0  # the mean of equal numbers may differ from them by rounding
    if config.baseline == "leave_one_out":
        centred = centred * (group_size / (group_size - 1))
    elif config.scale != "none":
        deviation = rewards.std(1, ddof=int(config.scale == "sample"), keepdims=True)
        centred = centred / (deviation + config.eps)
    return centred.astype(np.float32).reshape(-1)


def zero_advantage_groups(advantages: np.ndarray, group_size: int) -> int:
    """How many groups of advantages [B*G] are all 0 and so teach nothing."""
    return int((advantages.reshape(-1, group_size) == 0).all(1).sum())
