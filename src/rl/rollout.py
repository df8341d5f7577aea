"""The record that crosses from sampling over rewards to the loss.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rollout:
    """Sampled completions of B images with all that the loss needs.

    image_rows int64 [B]: rows of the training records; completion_ids int32 [M, T]; completion_mask float32 [M, T],
    1 for sampled tokens up to and including the first EOS; old_logprobs and ref_logprobs float32 [M, T];
    rewards float32 [B, G], the weighted sum of a mixture, NaN where a group lacks one; advantages float32 [M].
    """

    image_rows: np.ndarray
    completion_ids: np.ndarray
    completion_mask: np.ndarray
    old_logprobs: np.ndarray
    ref_logprobs: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray

    @property
    def reward_mean(self) -> float:
        """Over the rewards that are not missing."""
        return moments(self.rewards)[0]

    def groups(self, images: np.ndarray) -> "Rollout":
        """The whole groups of the given images (indices into B)."""
        group_size = self.rewards.shape[1]
        rows = (images[:, None] * group_size + np.arange(group_size)).reshape(-1)
        return Rollout(
            self.image_rows[images],
            self.completion_ids[rows],
            self.completion_mask[rows],
            self.old_logprobs[rows],
            self.ref_logprobs[rows],
            self.rewards[images],
            self.advantages[rows],
        )


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the values that are not missing (NaN); NaN where all are."""
    there = values[~np.isnan(values)]
    return (float(there.mean()), float(there.std())) if there.size else (np.nan, np.nan)
