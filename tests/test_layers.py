"""Layers against float64 formulas, and their hand-written gradients against finite differences."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.models.layers import LayerNorm, Linear, column_sums


class Weighted(nn.Cell):
    """sum(weights * layer(x)): a scalar whose gradient tests every output."""

    def __init__(self, layer, weights):
        super().__init__()
        self.layer = layer
        self.weights = weights

    def construct(self, x):
        return ops.reduce_sum(self.weights * self.layer(x))


def linear(x, weight, bias):
    return x @ weight.T + bias


def layer_norm(x, gamma, beta):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta


@pytest.mark.parametrize("build, formula", [(lambda: Linear(4, 4), linear), (lambda: LayerNorm(4), layer_norm)])
def test_values_and_gradients(mode, build, formula):
    rng = np.random.default_rng(0)
    layer, x, weights = build(), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    parameters = layer.trainable_params()
    arrays = [rng.normal(size=parameter.shape) for parameter in parameters]
    for parameter, array in zip(parameters, arrays):
        parameter.set_data(Tensor(array.astype(np.float32)))
    x32 = Tensor(x.astype(np.float32))
    np.testing.assert_allclose(layer(x32).asnumpy(), formula(x, *arrays), rtol=1e-5, atol=1e-5)

    scalar = Weighted(layer, Tensor(weights.astype(np.float32)))
    grad_x, grads = ms.grad(scalar, 0, ms.ParameterTuple(parameters))(x32)
    arguments = [x, *arrays]
    for place, grad in enumerate([grad_x, *grads]):
        for index in np.ndindex(*arguments[place].shape):
            ends = []
            for sign in (1, -1):
                moved = [argument.copy() for argument in arguments]
                moved[place][index] += sign * 1e-5
                ends.append((weights * formula(*moved)).sum())
            assert grad.asnumpy()[index] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4)


def test_column_sums():
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert column_sums(Tensor(x)).asnumpy().tolist() == [30, 36]
