"""The losses, as pure functions of tensors.

Letters: M rows, T tokens. A mask is 1 where a token counts; what lies under it never matters.
"""

import mindspore.common.dtype as mstype
from mindspore import Tensor, ops

# Order of the statistics that grpo_loss returns beside the loss.
GRPO_STATS = ("policy_loss", "kl", "clip_fraction", "ratio_mean")


def aggregate(values: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    """Mean of values [M, T] over the tokens that count: a scalar.

    `token`: sum over tokens / number of tokens (DAPO, arXiv:2503.14476); `sequence`: mean per row, then over rows
    (GRPO, arXiv:2402.03300, equation 3); `constant`: sum over tokens / (M*T), free of length bias
    (Dr. GRPO, arXiv:2503.20783).
    """
    values = values * mask
    if aggregation == "sequence":
        return ops.mean(ops.reduce_sum(values, 1) / ops.reduce_sum(mask, 1))
    if aggregation == "constant":
        return ops.mean(values)
    return ops.reduce_sum(values) / ops.reduce_sum(mask)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    kl_coef: float,
    aggregation: str,
    importance_weight: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The KL-regularised clipped objective of GRPO (arXiv:2402.03300, equation 3), negated.

    logprobs, old_logprobs, ref_logprobs, mask: float32 [M, T]; advantages float32 [M].
    Objective: min(ratio*A, clip(ratio, 1-eps_low, 1+eps_high)*A) - kl_coef*k3, with ratio = exp(logprobs - old) and
    k3 = exp(ref - logprobs) - (ref - logprobs) - 1 (equation 4), which `importance_weight` multiplies by the ratio.
    Returns the loss and GRPO_STATS: policy_loss (the loss without its KL term), kl (nats per token, token mean of k3),
    clip_fraction (share of tokens where the minimum takes the clipped branch outside the bounds), ratio_mean.
    """
    counts = mask > 0
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

    policy_loss = -aggregate(policy, mask, aggregation)
    loss = policy_loss + kl_coef * aggregate(penalty, mask, aggregation)
    outside = ops.cast(clipped * advantages < ratio * advantages, mstype.float32)
    clip_fraction = aggregate(outside, mask, "token")
    return loss, (policy_loss, aggregate(k3, mask, "token"), clip_fraction, aggregate(ratio, mask, "token"))


def cross_entropy_loss(logprobs: Tensor, mean_logprobs: Tensor, mask: Tensor, label_smoothing: float) -> Tensor:
    """Token mean of the negative log-likelihood, smoothed (Szegedy et al. 2016, section 7).

    logprobs float32 [M, T] of the targets; mean_logprobs float32 [M, T], the mean log-prob over the tokens that may be
    produced; mask float32 [M, T].
    """
    smoothed = (1.0 - label_smoothing) * logprobs + label_smoothing * mean_logprobs
    return -aggregate(ops.where(mask > 0, smoothed, 0.0), mask, "token")
