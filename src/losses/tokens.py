"""Scores and weights of tokens, as every loss uses them.

Letters: M rows, T tokens, R = M*T, D width, V vocabulary. A loss is a sum of weighted tokens, and the weights come from
the host: any division of a batch, into parts or among workers, adds up to the loss of the whole. A token counts if its
weight is above 0; other tokens never affect the loss.
"""

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src.decoding.distribution import Sampled, TokenLogprobs, least_logit, most_probable, policy_logits
from src.models.kernels import MASKED
from src.models.policy import Policy

MOST_CHUNKS = 128  # in a graph: one of 400 breaks the graphs that are compiled after it (MindSpore 2.9)
_BIAS_ADD = ops.BiasAdd()
_CAST = ops.Cast()
_GREATER_EQUAL = ops.GreaterEqual()
_ONES_LIKE = ops.OnesLike()
_SOFTMAX = ops.Softmax(-1)
_MATMUL = ops.MatMul()
_MATMUL_WITH_TRANSPOSED = ops.MatMul(transpose_b=True)
_MATMUL_OF_TRANSPOSED = ops.MatMul(transpose_a=True)


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


class TokenScores(nn.Cell):
    """Scores of given tokens under the sampled distribution, teacher forced.

    Inputs: inputs (pixels or features), completion_ids int32 [M, T], keep as in Policy.hidden. Returns, each [M, T]:
    log-probs; the mean log-prob over the tokens that may be produced if `with_mean`, else the log-probs again;
    entropies in nats, without gradient; and 1 where the token is the most probable one, else 0.
    """

    def __init__(self, policy: Policy, sampled: Sampled, *, with_mean: bool = False) -> None:
        super().__init__()
        self.policy, self.sampled, self.with_mean = policy, sampled, with_mean
        allowed = policy.token_ids.allowed
        self.share = Tensor(allowed[:, None] / allowed.sum(), ms.float32)  # [V, 1]
        self.whole = TokenLogprobs()
        self.chunked = ChunkedLogprobs(sampled, policy.chunk_rows)

    def construct(
        self, inputs: Tensor, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy, shape = self.policy, completion_ids.shape
        hidden = policy.hidden(policy.prefix(inputs), completion_ids, keep)
        hidden, tokens = hidden.reshape(-1, hidden.shape[-1]), completion_ids.reshape(-1)
        if policy.chunk_rows > 0:
            weight, bias = policy.head()
            # Even of float32: a parameter that is an input of a cell with a bprop does not compile.
            hidden, weight = ops.cast(hidden, mstype.float32), ops.cast(weight, mstype.float32)
            logprobs, logsumexp, entropy, hits, _ = self.chunked(hidden, weight, bias, tokens)
            mean = logprobs
            if self.with_mean:
                mean = _MATMUL(hidden, _MATMUL_OF_TRANSPOSED(weight, self.share)).reshape(-1) - logsumexp
        else:
            logits = policy_logits(policy.logits(hidden), self.sampled, tokens)
            logprobs, logsumexp, entropy, _ = self.whole(logits, tokens)
            hits = ops.cast(most_probable(logits) == tokens, mstype.float32)
            mean = logprobs
            if self.with_mean:
                mean = ops.squeeze(ops.matmul(logits, self.share), -1) - logsumexp
        return logprobs.reshape(shape), mean.reshape(shape), entropy.reshape(shape), hits.reshape(shape)


class ChunkedLogprobs(nn.Cell):
    """TokenLogprobs of `rows` rows at a time, whose logits are computed again for the gradient: [rows, V] at once.

    More rows at a time, if there were more than MOST_CHUNKS chunks otherwise.

    Inputs: hidden float32 [R, D], weight float32 [V, D] and bias float32 [V] of the logits, tokens int32 [R]. Returns
    log-probs, logsumexps, entropies and hits, each [R], and the least logits that count, [R, 1]; the first two have
    gradients, to hidden and weight.
    """

    def __init__(self, sampled: Sampled, rows: int) -> None:
        super().__init__()
        self.sampled, self.rows = sampled, rows
        self.cut = sampled.top_k > 0 or sampled.top_p < 1.0
        self.token_logprobs = TokenLogprobs()

    def construct(self, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        total, parts = hidden.shape[0], (tokens,)
        rows = self.rows if total <= self.rows * MOST_CHUNKS else -(-total // MOST_CHUNKS)
        for start in range(0, total, rows):  # a condition in here would double the depth of the graph
            chunk = ops.depend(hidden[start : start + rows], parts[-1])  # the logits of the last chunk are gone
            parts += self.chunk(chunk, weight, bias, tokens[start : start + rows])
        return tuple([ops.concat(parts[place::5]) for place in range(1, 6)])

    def chunk(self, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs for some of the rows."""
        logits = _BIAS_ADD(_MATMUL_WITH_TRANSPOSED(hidden, weight), bias)
        least = ops.zeros((hidden.shape[0], 1), mstype.float32)
        if self.cut:
            least = least_logit(logits / self.sampled.temperature, self.sampled)
        logits = policy_logits(logits, self.sampled, tokens)
        logprobs, logsumexp, entropy, _ = self.token_logprobs(logits, tokens)
        return logprobs, logsumexp, entropy, ops.cast(most_probable(logits) == tokens, mstype.float32), least

    def bprop(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, out: tuple, dout: tuple
    ) -> tuple[Tensor, ...]:
        # Only operators: functions that other graphs have used may be empty here ("The func graph is empty").
        temperature, total = self.sampled.temperature, hidden.shape[0]
        rows = self.rows if total <= self.rows * MOST_CHUNKS else -(-total // MOST_CHUNKS)
        ones = ops.ones((1, weight.shape[0]), mstype.float32)
        to_weight = ops.zeros_like(weight)
        to_hidden: tuple[Tensor, ...] = (tokens,)
        for start in range(0, total, rows):
            chunk = ops.depend(hidden[start : start + rows], to_hidden[-1])
            own = ops.expand_dims(tokens[start : start + rows], -1)
            from_logprob = ops.expand_dims(dout[0][start : start + rows], -1)
            from_logsumexp = ops.expand_dims(dout[1][start : start + rows], -1)
            logits = _BIAS_ADD(_MATMUL_WITH_TRANSPOSED(chunk, weight), bias) / temperature
            if self.cut:
                counts = _CAST(_GREATER_EQUAL(logits, out[4][start : start + rows]), mstype.float32)
                counts = ops.tensor_scatter_elements(counts, own, _ONES_LIKE(from_logprob), 1)
                logits = logits + (1.0 - counts) * MASKED
            # The product repeats a column: CPU kernels keep the workspace of a broadcast to the end of a graph.
            gradient = _SOFTMAX(logits) * _MATMUL(from_logsumexp - from_logprob, ones)
            gradient = ops.tensor_scatter_elements(gradient, own, from_logprob, 1, "add") / temperature
            to_hidden += (_MATMUL(gradient, weight),)
            to_weight = to_weight + _MATMUL_OF_TRANSPOSED(gradient, chunk)
        return ops.concat(to_hidden[1:]), to_weight, ops.zeros_like(bias), ops.zeros_like(tokens)
