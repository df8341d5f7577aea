"""Cross-entropy: the equation and its cell.

Letters: B images, M rows, T tokens, D width, V vocabulary.
"""

import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.decoding.distribution import Sampled
from src.losses.tokens import TokenScores, weighted_sum
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
        self.scales = tuple(1.0 / (1.0 - rate) for rate in policy.dropout_sites)
        self.smoothing = smoothing
        self.scores = TokenScores(policy, Sampled(), with_mean=smoothing > 0)

    def construct(
        self, inputs: Tensor, targets: Tensor, weights: Tensor, *keep: Tensor
    ) -> tuple[Tensor, tuple[Tensor]]:
        factors: tuple[Tensor, ...] | None = None
        if len(keep) > 0:
            factors = ()
            for site, scale in zip(keep, self.scales):
                factors += (ops.cast(site, mstype.float32) * scale,)
        logprobs, mean_logprobs, _, hits = self.scores(inputs, targets, factors)
        loss = cross_entropy_loss(logprobs, mean_logprobs, weights, self.smoothing)
        return loss, (weighted_sum(hits, weights),)
