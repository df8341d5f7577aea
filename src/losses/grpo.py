"""The losses, as pure functions of tensors.

Letters: M rows, T tokens. A token counts where its weight is above 0; what stands elsewhere never matters. A loss is a
sum of weighted tokens, and the weights come from the host: any division of a batch, into parts or among workers, adds
up to the loss of the whole.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, ops

# Order of the statistics that grpo_loss returns beside the loss.
GRPO_STATS = ("policy_loss", "kl", "clip_fraction", "ratio_mean")


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


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    kl_coef: float,
    importance_weight: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The KL-regularised clipped objective of GRPO (arXiv:2402.03300, equation 3), negated.

    logprobs, old_logprobs, ref_logprobs, weights (of `token_weights`): float32 [M, T]; advantages float32 [M].
    Objective: min(ratio*A, clip(ratio, 1-eps_low, 1+eps_high)*A) - kl_coef*k3, with ratio = exp(logprobs - old) and
    k3 = exp(ref - logprobs) - (ref - logprobs) - 1 (equation 4), which `importance_weight` multiplies by the ratio.
    Returns the loss and GRPO_STATS, means by the same weights: policy_loss (the loss without its KL term), kl (nats per
    token, k3), clip_fraction (share of tokens where the minimum takes the clipped branch outside the bounds),
    ratio_mean.
    """
    counts = weights > 0
    logprobs = ops.where(counts, logprobs, 0.0)
    old_logprobs = ops.where(counts, old_logprobs, 0.0)
    ref_logprobs = ops.where(counts, ref_logprobs, 0.0)
    advantages = ops.expand_dims(advantages, 1)  # [M, 1]

    ratio = ops.exp(logprobs - old_logprobs)
    clipped = ops.clamp(ratio, 1.0 - clip_eps_low, 1.0 + clip_eps_high)
    policy = ops.minimum(ratio * advantages, clipped * advantages)
    difference = ref_logprobs - logprobs
    k3 = ops.exp(difference) - difference - 1.0
    penalty = k3 * ratio if importance_weight else k3

    policy_loss = -weighted_sum(policy, weights)
    loss = policy_loss + kl_coef * weighted_sum(penalty, weights)
    outside = ops.cast(clipped * advantages < ratio * advantages, mstype.float32)
    return loss, (policy_loss, weighted_sum(k3, weights), weighted_sum(outside, weights), weighted_sum(ratio, weights))


def cross_entropy_loss(logprobs: Tensor, mean_logprobs: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Token mean of the negative log-likelihood, smoothed (Szegedy et al. 2016, section 7).

    logprobs float32 [M, T] of the targets; mean_logprobs float32 [M, T], the mean log-prob over the tokens that may be
    produced; weights (of `token_weights`) float32 [M, T].
    """
    smoothed = (1.0 - label_smoothing) * logprobs + label_smoothing * mean_logprobs
    return -weighted_sum(ops.where(weights > 0, smoothed, 0.0), weights)
