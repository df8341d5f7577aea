"""Layers against float64 formulas, and their hand-written gradients against finite differences."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.models import kernels, norms
from src.models.layers import LayerNorm, Linear
from src.models.vision_language.layer import RMSNorm, Rotation


class Weighted(nn.Cell):
    """sum(weights * layer(x)): a scalar whose gradient tests every output."""

    def __init__(self, layer, weights):
        super().__init__()
        self.layer = layer
        self.weights = weights

    def construct(self, x):
        return ops.reduce_sum(self.weights * self.layer(x))


class OfRows(nn.Cell):
    """A layer of rows [R, 4], or a kernel of them, on x [2, 3, 4]."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def construct(self, x):
        return self.layer(x.reshape(-1, 4)).reshape(2, 3, -1)


class Turned(nn.Cell):
    """Row r is turned by r and by r/2."""

    def __init__(self):
        super().__init__()
        self.rotation = Rotation(4, ms.float32)
        angles = np.outer(np.arange(6), (1, 0.5, 1, 0.5))
        self.cosines, self.sines = Tensor(np.cos(angles), ms.float32), Tensor(np.sin(angles), ms.float32)

    def construct(self, x):
        return self.rotation(x, self.cosines, self.sines)


def rms_norm(x, gamma):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * gamma


def swiglu(x):
    gate, up = x[..., :2], x[..., 2:]
    return gate / (1 + np.exp(-gate)) * up


def turned(x):
    """Of each row (a, b, c, d), the complex numbers a + ci and b + di."""
    numbers = x.reshape(6, 4)[:, :2] + 1j * x.reshape(6, 4)[:, 2:]
    numbers = numbers * np.exp(1j * np.outer(np.arange(6), (1, 0.5)))
    return np.concatenate((numbers.real, numbers.imag), 1).reshape(x.shape)


def linear(x, weight, bias):
    return x @ weight.T + bias


def layer_norm(x, gamma, beta):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta


@pytest.mark.parametrize(
    "target, build, formula",
    [
        ("CPU", lambda: Linear(4, 4), linear),
        ("Ascend", lambda: Linear(4, 4), linear),
        ("CPU", lambda: LayerNorm(4), layer_norm),  # CPU has no kernel of the other form: see test_readiness.py
        ("CPU", lambda: OfRows(RMSNorm(4, 0.1)), rms_norm),
        ("CPU", lambda: OfRows(norms.swiglu()), swiglu),
        ("CPU", lambda: OfRows(Turned()), turned),
    ],
)
def test_values_and_gradients(mode, target, build, formula):
    """In the forms of both devices, where this one has kernels for both."""
    rng = np.random.default_rng(0)
    with kernels.built_for(target):
        layer = build()
    x = rng.normal(size=(2, 3, 4))
    weights = rng.normal(size=layer(Tensor(x.astype(np.float32))).shape)
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
    assert kernels.column_sums(Tensor(x)).asnumpy().tolist() == [30, 36]


class Applied(nn.Cell):
    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def construct(self, x):
        return ops.reduce_sum(ops.square(self.kernel(x)))


@pytest.mark.parametrize(
    "kernel, formula",
    [
        (kernels.row_sums, lambda x: x.sum(-1, keepdims=True)),
        (kernels.row_means, lambda x: x.mean(-1, keepdims=True)),
        (kernels.squared_norm, lambda x: np.square(x).sum(keepdims=True).reshape(1, 1)),
    ],
)
def test_both_forms_of_a_reduction_agree(mode, kernel, formula):
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    gradients = []
    for target in ("CPU", "Ascend"):
        with kernels.built_for(target):
            function = kernel()
        cell = Applied(function)
        np.testing.assert_allclose(function(Tensor(x)).asnumpy(), formula(x.astype(np.float64)), rtol=1e-5, atol=1e-6)
        gradients.append(ms.grad(cell)(Tensor(x)).asnumpy())
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)
    with kernels.built_for("Ascend"):
        ascend = kernel()
    assert ascend is not kernel() and ascend.__name__.endswith("reduced")


def test_causal_attention_is_flash_where_ascend_takes_it():
    flash = []
    for target, size, dtype in (
        ("Ascend", 16, ms.float16),
        ("Ascend", 16, ms.float32),
        ("Ascend", 8, ms.float16),
        ("CPU", 16, ms.float16),
    ):
        with kernels.built_for(target):
            flash.append("Flash" in type(kernels.causal_attention(2, size, dtype, 8)).__name__)
    assert flash == [True, False, False, False]
