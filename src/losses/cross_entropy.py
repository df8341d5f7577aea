"""Cross-entropy: the equation and its cell.

Letters: B images, M rows, T tokens, D width, V vocabulary.
"""

import mindspore as ms
import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.decoding.distribution import TokenLogprobs, most_probable
from src.losses.tokens import token_logits, weighted_sum
from src.models.policy import Policy


def cross_entropy_loss(logprobs: Tensor, mean_logprobs: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Token mean of the negative log-likelihood, smoothed (Szegedy et al. 2016, section 7).

    logprobs float32 [M, T] of the targets; mean_logprobs float32 [M, T], the mean log-prob over the tokens that may be
    produced; weights (of `token_weights`) float32 [M, T].
    """
    smoothed = (1.0 - label_smoothing) * logprobs + label_smoothing * mean_logprobs
    return -weighted_sum(ops.where(weights > 0, smoothed, 0.0), weights)


class CELossCell(nn.Cell):
    """Cross-entropy of all captions of an image with one encoding.

    Inputs: inputs (pixels or features of B images), targets int32 [M, T], weights (of `token_weights`) float32 [M, T],
    keep bool [M, T, D] for each of the policy's dropout_sites. Returns the loss and STATS.
    """

    STATS = ("token_accuracy",)

    def __init__(self, policy: Policy, smoothing: float) -> None:
        super().__init__()
        self.policy = policy
        allowed = policy.token_ids.allowed
        self.allowed_share = Tensor(allowed[:, None] / allowed.sum(), ms.float32)  # [V, 1]
        self.scales = tuple(1.0 / (1.0 - rate) for rate in policy.dropout_sites)
        self.smoothing = smoothing
        self.token_logprobs = TokenLogprobs()

    def construct(
        self, inputs: Tensor, targets: Tensor, weights: Tensor, *keep: Tensor
    ) -> tuple[Tensor, tuple[Tensor]]:
        factors: tuple[Tensor, ...] | None = None
        if len(keep) > 0:
            factors = ()
            for site, scale in zip(keep, self.scales):
                factors += (ops.cast(site, mstype.float32) * scale,)
        tokens = targets.reshape(-1)
        logits = token_logits(self.policy, inputs, targets, factors)
        logprobs, logsumexp, _, _ = self.token_logprobs(logits, tokens)
        mean_logprobs = logprobs
        if self.smoothing > 0:
            mean_logprobs = ops.squeeze(ops.matmul(logits, self.allowed_share), -1) - logsumexp
        loss = cross_entropy_loss(
            logprobs.reshape(weights.shape), mean_logprobs.reshape(weights.shape), weights, self.smoothing
        )
        hits = ops.cast(most_probable(logits) == tokens, mstype.float32).reshape(weights.shape)
        return loss, (weighted_sum(hits, weights),)
