"""The decoder against an independent float64 implementation, cached against teacher forced."""

import mindspore as ms
import numpy as np
import pytest
from conftest import CHANNELS, VOCAB
from mindspore import Tensor, nn

from src.models.captioner.decoder import shift_right


class Forced(nn.Cell):
    """Teacher-forced logits [M, L, V]."""

    def __init__(self, captioner):
        super().__init__()
        self.decoder = captioner.decoder

    def construct(self, features, inputs):
        return self.decoder.logits(self.decoder.hidden(inputs, self.decoder.memory(features)))


class Stepped(nn.Cell):
    """The same logits, one cached step at a time."""

    def __init__(self, captioner):
        super().__init__()
        self.decoder = captioner.decoder

    def construct(self, features, inputs):
        decoder = self.decoder
        memory = decoder.memory(features)
        caches = ()
        logits = ()
        for t in range(inputs.shape[1]):
            hidden, caches = decoder.step(inputs[:, t], t, memory, caches)
            logits += (decoder.logits(hidden),)
        return ms.ops.stack(logits, 1)


def half(x):
    return x.astype(np.float16).astype(np.float64)


def numpy_decoder(captioner, features, inputs, heads=2, low=lambda x: x, looks=None):
    """Post-norm Transformer decoder in float64, one row and one head at a time, memory copied to every row.

    low: rounds factors and results of all products but the last. looks: a list that takes the weights [L, N] of the
    cross-attention of every row, layer and head, in this order.
    """
    weights = {name: value.asnumpy().astype(np.float64) for name, value in captioner.decoder.parameters_and_names()}

    def linear(name, x):
        if name == "output":
            return x @ weights["output.weight"].T + weights["output.bias"]
        return low(low(x) @ low(weights[f"{name}.weight"]).T) + weights.get(f"{name}.bias", 0)

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.gamma"] + weights[f"{name}.beta"]

    def attention(query, key, value, causal):
        query, key, value = low(query), low(key), low(value)
        size = query.shape[1] // heads
        out = np.zeros_like(query)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = low(query[:, part] @ key[:, part].T) / np.sqrt(size)
            if causal:
                scores[np.triu_indices(len(scores), 1)] = -np.inf
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares = shares / shares.sum(1, keepdims=True)
            if looks is not None and not causal:
                looks.append(shares)
            out[:, part] = low(low(shares) @ value[:, part])
        return out

    group = len(inputs) // len(features)
    result = []
    for row, tokens in enumerate(inputs):
        memory = norm("memory_norm", linear("memory_projection", features[row // group].astype(np.float64)))
        x = weights["embedding"][tokens] + weights["positions"][: len(tokens)]
        for layer in ("layers.0", "layers.1"):
            query, key, value = np.split(linear(f"{layer}.self_qkv", x), 3, 1)
            x = norm(f"{layer}.self_norm", x + linear(f"{layer}.self_out", attention(query, key, value, True)))
            key, value = np.split(linear(f"{layer}.cross_kv", memory), 2, 1)
            seen = attention(linear(f"{layer}.cross_query", x), key, value, False)
            x = norm(f"{layer}.cross_norm", x + linear(f"{layer}.cross_out", seen))
            update = linear(f"{layer}.contract", np.maximum(linear(f"{layer}.expand", x), 0))
            x = norm(f"{layer}.out_norm", x + update)
        result.append(linear("output", x))
    return np.array(result)


@pytest.fixture
def inputs():
    return np.random.default_rng(2).integers(0, VOCAB, (6, 5)).astype(np.int32)  # 2 images x 3 rows, 5 tokens


@pytest.mark.parametrize("cell", [Forced, Stepped])
def test_equals_float64_reference(mode, captioner, features, inputs, allowed, cell):
    assert features.shape[2] == CHANNELS
    logits = cell(captioner)(features, Tensor(inputs)).asnumpy()
    expected = numpy_decoder(captioner, features.asnumpy(), inputs)
    np.testing.assert_allclose(logits[..., allowed], expected[..., allowed], rtol=1e-4, atol=1e-4)
    assert (logits[..., ~allowed] < -1e8).all()


@pytest.mark.parametrize("cell", [Forced, Stepped])
def test_float16_products_round_as_they_should(mode, half_captioner, features, inputs, allowed, cell):
    logits = cell(half_captioner)(features, Tensor(inputs)).asnumpy()[..., allowed]
    exact = numpy_decoder(half_captioner, features.asnumpy(), inputs)[..., allowed]
    rounded = numpy_decoder(half_captioner, features.asnumpy(), inputs, low=half)[..., allowed]
    assert logits.dtype == np.float32
    assert np.abs(logits - rounded).mean() < 0.3 * np.abs(logits - exact).mean()
    np.testing.assert_allclose(logits, exact, atol=0.03)


def test_later_tokens_do_not_change_earlier_logits(captioner, features, inputs):
    cell = Forced(captioner)
    before = cell(features, Tensor(inputs)).asnumpy()
    inputs[:, 3:] = 5
    after = cell(features, Tensor(inputs)).asnumpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 4] != after[:, 4]).any()


class Dropped(nn.Cell):
    def __init__(self, captioner):
        super().__init__()
        self.decoder = captioner.decoder

    def construct(self, features, inputs, *keep):
        return self.decoder.hidden(inputs, self.decoder.memory(features), keep)


def test_dropout_factors_are_applied_at_every_site(captioner, features, inputs):
    one = Tensor(np.ones((*inputs.shape, captioner.decoder.width), np.float32))
    sites = 1 + 3 * len(captioner.decoder.layers)
    ones = (one,) * sites
    dropped = Dropped(captioner)
    decoder = captioner.decoder
    hidden = decoder.hidden(Tensor(inputs), decoder.memory(features)).asnumpy()
    np.testing.assert_allclose(dropped(features, Tensor(inputs), *ones).asnumpy(), hidden, atol=1e-6)
    for site in range(sites):
        keep = (*ones[:site], one * 0, *ones[site + 1 :])
        assert (dropped(features, Tensor(inputs), *keep).asnumpy() != hidden).any(), site


def test_shift_right_puts_bos_first():
    shifted = shift_right(Tensor(np.array([[5, 6, 7]], np.int32)), 2).asnumpy()
    assert shifted.tolist() == [[2, 5, 6]]
