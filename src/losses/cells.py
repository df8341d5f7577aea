"""Loss cells and the reference cell: the functions of src.losses.grpo on the captioner's log-probs, as graphs.

Letters: B images, M rows, T tokens, D width, V vocabulary.
"""

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src.config.schema import Config
from src.decoding.distribution import TokenLogprobs, most_probable, policy_logits, select
from src.losses.grpo import GRPO_STATS, cross_entropy_loss, grpo_loss, weighted_sum
from src.models.captioner.decoder import shift_right
from src.models.captioner.policy import Captioner


def flat_logits(
    captioner: Captioner, inputs: Tensor, tokens: Tensor, bos_id: int, keep: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Teacher-forced logits [M*T, V] of tokens int32 [M, T] on the images given as `inputs`."""
    hidden = captioner.hidden(inputs, shift_right(tokens, bos_id), keep)
    return captioner.decoder.logits(hidden.reshape(-1, hidden.shape[-1]))


class LogprobCell(nn.Cell):
    """Log-probs of given completions under the sampled distribution: the reference policy of a rollout.

    Inputs: inputs (pixels or features), completion_ids int32 [M, T]. Returns float32 [M, T].
    """

    def __init__(self, captioner: Captioner, bos_id: int, temperature: float, top_k: int) -> None:
        super().__init__()
        self.captioner = captioner
        self.bos_id = bos_id
        self.temperature = temperature
        self.top_k = top_k

    def construct(self, inputs: Tensor, completion_ids: Tensor) -> Tensor:
        tokens = completion_ids.reshape(-1)
        logits = flat_logits(self.captioner, inputs, completion_ids, self.bos_id)
        logits = policy_logits(logits, self.temperature, self.top_k, tokens)
        return select(ops.log_softmax(logits, -1), tokens).reshape(completion_ids.shape)


class GRPOLossCell(nn.Cell):
    """GRPO's loss of a minibatch of whole groups.

    Inputs: inputs (pixels or features of B images), completion_ids int32, weights (of `token_weights`), old_logprobs,
    ref_logprobs float32, each [M, T], advantages float32 [M]. Returns the loss and statistics named by STATS.
    """

    STATS = (*GRPO_STATS, "entropy")

    def __init__(self, captioner: Captioner, bos_id: int, config: Config) -> None:
        super().__init__()
        self.captioner = captioner
        self.bos_id = bos_id
        self.temperature = config.grpo.temperature
        self.top_k = config.grpo.top_k
        self.clip_eps_low = config.grpo.clip_eps_low
        self.clip_eps_high = config.grpo.clip_eps_high
        self.kl_coef = config.kl.coef
        self.importance_weight = config.kl.importance_weight
        self.token_logprobs = TokenLogprobs()

    def construct(
        self,
        inputs: Tensor,
        completion_ids: Tensor,
        weights: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        advantages: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        tokens = completion_ids.reshape(-1)
        logits = flat_logits(self.captioner, inputs, completion_ids, self.bos_id)
        logits = policy_logits(logits, self.temperature, self.top_k, tokens)
        logprobs, _, entropy, _ = self.token_logprobs(logits, tokens)
        loss, stats = grpo_loss(
            logprobs.reshape(weights.shape),
            old_logprobs,
            ref_logprobs,
            advantages,
            weights,
            clip_eps_low=self.clip_eps_low,
            clip_eps_high=self.clip_eps_high,
            kl_coef=self.kl_coef,
            importance_weight=self.importance_weight,
        )
        return loss, (*stats, weighted_sum(entropy.reshape(weights.shape), weights))


class CELossCell(nn.Cell):
    """Cross-entropy of all captions of an image with one encoding.

    Inputs: inputs (pixels or features of B images), targets int32 [M, T], weights (of `token_weights`) float32 [M, T],
    keep bool [M, T, D] for each dropout site of the decoder (none where all rates are 0). Returns the loss and STATS.
    """

    STATS = ("token_accuracy",)

    def __init__(self, captioner: Captioner, bos_id: int, allowed: np.ndarray, smoothing: float) -> None:
        super().__init__()
        self.captioner = captioner
        self.bos_id = bos_id
        self.allowed_share = Tensor(allowed[:, None] / allowed.sum(), ms.float32)  # [V, 1]
        self.scales = tuple(1.0 / (1.0 - rate) for rate in captioner.decoder.dropout_rates)
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
        logits = flat_logits(self.captioner, inputs, targets, self.bos_id, factors)
        logprobs, logsumexp, _, _ = self.token_logprobs(logits, tokens)
        mean_logprobs = logprobs
        if self.smoothing > 0:
            mean_logprobs = ops.squeeze(ops.matmul(logits, self.allowed_share), -1) - logsumexp
        loss = cross_entropy_loss(
            logprobs.reshape(weights.shape), mean_logprobs.reshape(weights.shape), weights, self.smoothing
        )
        hits = ops.cast(most_probable(logits) == tokens, mstype.float32).reshape(weights.shape)
        return loss, (weighted_sum(hits, weights),)
