"""Logits and weights of tokens, as every loss uses them.

Letters: M rows, T tokens, V vocabulary. A loss is a sum of weighted tokens, and the weights come from the host: any
division of a batch, into parts or among workers, adds up to the loss of the whole. A token counts if its weight is
above 0; other tokens never affect the loss.
"""

import numpy as np
from mindspore import Tensor, ops

from src.models.policy import Policy


def token_weights(mask: np.ndarray, aggregation: str) -> np.ndarray:
    """The weight of each token in the mean over a whole batch: float32 [M, T] from its mask [M, T].

    `token`: 1 / number of tokens (DAPO, arXiv:2503.14476); `sequence`: the mean of a row, then of the rows (GRPO,
    arXiv:2402.03300, equation 3); `constant`: 1 / (M*T), free of length bias (Dr. GRPO, arXiv:2503.20783).
    """
    if aggregation == "sequence":
        return (mask / (mask.sum(1, keepdims=True) * len(mask))).astype(np.float32)
    return (mask / (mask.size if aggregation == "constant" else mask.sum())).astype(np.float32)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights), both [M, T]: a scalar."""
    return ops.reduce_sum(values * weights)


def token_logits(
    policy: Policy, inputs: Tensor, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Teacher-forced logits [M*T, V] of completion_ids int32 [M, T] on the images given as `inputs`."""
    hidden = policy.hidden(policy.prefix(inputs), completion_ids, keep)
    return policy.logits(hidden.reshape(-1, hidden.shape[-1]))
