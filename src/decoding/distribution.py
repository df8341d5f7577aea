"""The distribution that tokens are sampled from and scored under.

Letters: R any leading shape of rows or rows and tokens, V vocabulary.
"""

from typing import NamedTuple

import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.config.schema import EvalConfig, RLConfig
from src.models import kernels
from src.models.kernels import MASKED

_ARGMAX = ops.Argmax(axis=-1, output_type=mstype.int32)  # `ops.argmax` gives int64
_BLOCK = 128  # tokens; about the square root of a vocabulary


class Sampled(NamedTuple):
    """How the sampled distribution differs from the policy's: divided logits, then only the most probable tokens.

    top_k 0 and top_p 1 keep all. top_p keeps the fewest tokens whose probability reaches it (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, settings: RLConfig | EvalConfig) -> "Sampled":
        """Return what the settings of training or of evaluation ask for."""
        return cls(settings.temperature, settings.top_k, settings.top_p)


def policy_logits(logits: Tensor, sampled: Sampled, tokens: Tensor | None = None) -> Tensor:
    """Logits [R, V] of the sampled distribution, MASKED for tokens that are left out.

    `tokens` int32 [R] stay inside, so that a token sampled by an older policy has a finite log-prob when it has left
    the most probable ones.
    """
    if sampled.temperature != 1.0:
        logits = logits / sampled.temperature
    if sampled.top_k == 0 and sampled.top_p == 1.0:
        return logits
    kept = logits >= least_logit(logits, sampled)
    if tokens is not None:
        kept = ops.logical_or(kept, ops.expand_dims(tokens, -1) == ops.arange(logits.shape[-1]))
    return ops.where(kept, logits, MASKED)


def least_logit(logits: Tensor, sampled: Sampled) -> Tensor:
    """The smallest logit [R, 1] among the most probable tokens, of logits [R, V] divided by the temperature."""
    least = ops.full((*logits.shape[:-1], 1), MASKED, dtype=logits.dtype)
    if sampled.top_k > 0:
        least = ops.topk(logits, sampled.top_k)[0][..., -1:]
        logits = ops.where(logits >= least, logits, MASKED)
    if sampled.top_p < 1.0:
        falling, _ = ops.sort(logits, -1, True)
        probabilities = ops.softmax(falling, -1)
        before = ops.cumsum(probabilities, -1) - probabilities  # of the more probable tokens
        last = ops.sum(ops.cast(before < sampled.top_p, mstype.int32), -1, keepdim=True) - 1
        least = ops.maximum(least, ops.gather_elements(falling, logits.ndim - 1, last))
    return least


class InverseCDF(nn.Cell):
    """Draws one token a row by inverse transform sampling: int32 [M] from probabilities [M, V] and uniforms [M, 1].

    In two steps, a block of tokens and a token of the block: cumulative sums cannot be computed in parallel, sums of
    blocks can, and are more exact. The token is clipped to `last`, the last id that may be drawn.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self.row_sums = kernels.row_sums()

    def construct(self, probabilities: Tensor, uniforms: Tensor) -> Tensor:
        rows, vocab = probabilities.shape
        blocks = -(-vocab // _BLOCK)
        padding = ops.zeros((rows, blocks * _BLOCK - vocab), probabilities.dtype)
        parts = ops.concat((probabilities, padding), 1).reshape(rows * blocks, _BLOCK)
        sums = self.row_sums(parts).reshape(rows, blocks)
        block, uniforms = _first_above(sums, uniforms)
        place = ops.reshape(ops.arange(rows, dtype=mstype.int32) * blocks, (rows, 1)) + block
        token, _ = _first_above(ops.gather(parts, ops.squeeze(place, -1), 0), uniforms)
        return ops.minimum(ops.squeeze(block * _BLOCK + token, -1), self.last)


def _first_above(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The number of cumulative sums of weights [M, K] that are <= u * the last, int32 [M, 1], for u float32 [M, 1].

    The threshold is relative, so that rounding of the sums does not matter. Also returns where in the weight that it
    reaches the threshold lies, [M, 1] in [0, 1): a uniform number that is left for a second draw.
    """
    rows, size = weights.shape
    cumulative = ops.cumsum(weights, -1)
    threshold = uniforms * ops.slice(cumulative, (0, size - 1), (rows, 1))
    index = ops.minimum(ops.searchsorted(cumulative, threshold, out_int32=True, right=True), size - 1)
    weight = ops.gather_elements(weights, 1, index)
    before = ops.gather_elements(cumulative, 1, index) - weight
    left = (threshold - before) / ops.maximum(weight, 1e-30)
    return index, ops.clamp(left, 0.0, 1.0 - 2.0**-24)


def log(x: Tensor) -> Tensor:
    """Natural logarithm. On CPU, the last digits of `ops.log` change from its sixth call on."""
    return ops.xlogy(ops.ones_like(x), x)


def most_probable(logits: Tensor) -> Tensor:
    """The id of each row's largest logit: int32 [R] from logits [R, V]."""
    return _ARGMAX(logits)


def select(values: Tensor, tokens: Tensor) -> Tensor:
    """The value of each row's token: values [R, V] and tokens int32 [R] -> [R]."""
    return ops.squeeze(ops.gather_elements(values, values.ndim - 1, ops.expand_dims(tokens, -1)), -1)


class TokenLogprobs(nn.Cell):
    """Log-probs of given tokens, without a table [R, V] of log-probs, and with a gradient in two passes.

    Inputs: logits float32 [R, V], tokens int32 [R]. Returns, each [R] but the last: log p(token); the logsumexp of the
    logits; the entropy in nats; and the probabilities [R, V]. Only the first two have gradients:
    d log p(token) / d logits = onehot(token) - p, d logsumexp / d logits = p.
    """

    def __init__(self) -> None:
        super().__init__()
        self.row_means = kernels.row_means()

    def construct(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probabilities = ops.softmax(logits, -1)
        # log p of the most probable token is exact: it is never below -log V.
        logsumexp = ops.max(logits, -1)[0] - log(ops.max(probabilities, -1)[0])
        mean_logit = ops.squeeze(self.row_means(probabilities * logits), -1) * logits.shape[-1]
        return select(logits, tokens) - logsumexp, logsumexp, logsumexp - mean_logit, probabilities

    def bprop(self, logits: Tensor, tokens: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        from_logprob, from_logsumexp = ops.expand_dims(dout[0], -1), ops.expand_dims(dout[1], -1)
        gradient = out[3] * (from_logsumexp - from_logprob)
        places = ops.expand_dims(tokens, -1)
        return ops.tensor_scatter_elements(gradient, places, from_logprob, 1, "add"), ops.zeros_like(tokens)
