"""GRPO's loss: the equation, the cell that applies it, and the cell for the reference policy's log-probs.

Letters: B images, M rows, T tokens, V vocabulary.
"""

import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.config.schema import Config
from src.decoding.distribution import Sampled
from src.losses.tokens import TokenScores, weighted_sum
from src.models.policy import Policy

# Order of the statistics that grpo_loss returns beside the loss.
GRPO_STATS = ("policy_loss", "kl", "clip_fraction", "ratio_mean")


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


class GRPOLossCell(nn.Cell):
    """GRPO's loss of a minibatch of whole groups.

    Inputs: inputs (pixels or features of B images), completion_ids int32, weights (of `token_weights`), old_logprobs,
    ref_logprobs float32, each [M, T], advantages float32 [M]. Returns the loss and statistics named by STATS.
    """

    STATS = (*GRPO_STATS, "entropy")

    def __init__(self, policy: Policy, config: Config) -> None:
        super().__init__()
        self.scores = TokenScores(policy, Sampled.of(config.rl))
        self.clip_eps_low = config.rl.clip_eps_low
        self.clip_eps_high = config.rl.clip_eps_high
        self.kl_coef = config.kl.coef
        self.importance_weight = config.kl.importance_weight

    def construct(
        self,
        inputs: Tensor,
        completion_ids: Tensor,
        weights: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        advantages: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        logprobs, _, entropy, _ = self.scores(inputs, completion_ids)
        loss, stats = grpo_loss(
            logprobs,
            old_logprobs,
            ref_logprobs,
            advantages,
            weights,
            clip_eps_low=self.clip_eps_low,
            clip_eps_high=self.clip_eps_high,
            kl_coef=self.kl_coef,
            importance_weight=self.importance_weight,
        )
        return loss, (*stats, weighted_sum(entropy, weights))


class LogprobCell(nn.Cell):
    """Log-probs of given completions under the sampled distribution: the reference policy of a rollout.

    Inputs: inputs (pixels or features), completion_ids int32 [M, T]. Returns float32 [M, T].
    """

    def __init__(self, policy: Policy, sampled: Sampled) -> None:
        super().__init__()
        self.scores = TokenScores(policy, sampled)

    def construct(self, inputs: Tensor, completion_ids: Tensor) -> Tensor:
        return self.scores(inputs, completion_ids)[0]
