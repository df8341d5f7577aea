"""Log-probs, logsumexp and entropy against float64 formulas, and their gradient against finite differences."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.decoding.distribution import TokenLogprobs

TOKENS = np.array([2, 0, 4], np.int32)


def formulas(logits):
    top = logits.max(1, keepdims=True)
    logsumexp = (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0]
    shares = np.exp(logits - logsumexp[:, None])
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)
    return logits[np.arange(len(logits)), TOKENS] - logsumexp, logsumexp, entropy


class Weighted(nn.Cell):
    """A scalar of the log-probs and the logsumexps whose gradient tests both."""

    def __init__(self, weights):
        super().__init__()
        self.cell = TokenLogprobs()
        self.weights = Tensor(weights.astype(np.float32))

    def construct(self, logits):
        logprobs, logsumexp, _, _ = self.cell(logits, Tensor(TOKENS))
        return ops.reduce_sum(self.weights[0] * logprobs + self.weights[1] * logsumexp)


def test_values_and_gradients(mode):
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(0, 3, (3, 7)), rng.normal(size=(2, 3))
    logits[:, 6] = -1e9  # a token that is never produced
    logits[1, 0] = -60.0  # log-probs that no float32 probability could hold
    logits[2, 4] = -120.0
    logits32 = Tensor(logits.astype(np.float32))
    for output, expected in zip(TokenLogprobs()(logits32, Tensor(TOKENS)), formulas(logits)):
        np.testing.assert_allclose(output.asnumpy(), expected, rtol=1e-6, atol=2e-6)
    gradient = ms.grad(Weighted(weights))(logits32).asnumpy()
    for index in np.ndindex(3, 6):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * 1e-5
            logprobs, logsumexp, _ = formulas(moved)
            ends.append((weights[0] * logprobs + weights[1] * logsumexp).sum())
        assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-6)
    assert (gradient[:, 6] == 0).all()


def test_the_same_bits_however_often_it_is_called():
    """A run that goes on in a new process starts counting calls anew (MindSpore's CPU kernels tune themselves)."""
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(0, 3, (61, 119)).astype(np.float32), rng.integers(0, 119, 61, np.int32)
    cell = TokenLogprobs()
    outputs = [[value.asnumpy() for value in cell(Tensor(logits), Tensor(tokens))] for _ in range(12)]
    for later in outputs[1:]:
        assert all((value == first).all() for value, first in zip(later, outputs[0]))
