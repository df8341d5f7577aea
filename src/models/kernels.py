"""Operators in two forms: composed of basic ones for CPU and GPU, and Ascend's own.

MindSpore's CPU kernels for reductions and normalisations are slow, so they are composed of matrix products there; on
Ascend these would stand in place of fused kernels. Each function below returns the form for the device, which a cell
takes once, when it is built.

Letters: R rows, L tokens, H heads, D width, d = D/H.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

EPS = 1e-5  # of layer norms, where nothing else is said
MASKED = -1e9  # added to a logit that must not count; its exponential is 0 in float32

# Operators as they are: the functions of `ops` around them make several graphs of each call, and compile longer.
_BIAS_ADD = ops.BiasAdd()
_SOFTMAX = ops.Softmax(-1)
_SIGMOID = ops.Sigmoid()
_HALVES = ops.Split(-1, 2)
_JOIN = ops.Concat(-1)
_RSQRT = ops.Rsqrt()
_MATMUL = ops.MatMul()
_PRODUCT = ops.BatchMatMul()
_PRODUCT_WITH_TRANSPOSED = ops.BatchMatMul(transpose_b=True)
_MATMUL_WITH_TRANSPOSED = ops.MatMul(transpose_b=True)

_target: str | None = None  # in place of this process's device


@contextlib.contextmanager
def built_for(target: str) -> Iterator[None]:
    """Cells that are built inside take the forms of another device: their graphs can be judged without it."""
    global _target
    before, _target = _target, target
    try:
        yield
    finally:
        _target = before


def _choose(composite: Any, fused: Any) -> Any:
    return fused if (_target or ms.get_context("device_target")) == "Ascend" else composite


# ---- reductions ----


def row_sums() -> Callable[[Tensor], Tensor]:
    """x [..., D] -> sums over the last axis [..., 1]."""
    return _choose(_row_sums_product, _row_sums_reduced)


def row_means() -> Callable[[Tensor], Tensor]:
    """x [..., D] -> means over the last axis [..., 1]."""
    return _choose(_row_means_product, _row_means_reduced)


def squared_norm() -> Callable[[Tensor], Tensor]:
    """x of any shape -> the sum of its squares [1, 1]."""
    return _choose(_squared_norm_product, _squared_norm_reduced)


def _row_sums_product(x: Tensor) -> Tensor:
    return ops.matmul(x, ops.ones((x.shape[-1], 1), x.dtype))


def _row_sums_reduced(x: Tensor) -> Tensor:
    return ops.ReduceSum(keep_dims=True)(x, -1)


def _row_means_product(x: Tensor) -> Tensor:
    width = x.shape[-1]
    return ops.matmul(x, ops.full((width, 1), 1.0 / width, dtype=x.dtype))


def _row_means_reduced(x: Tensor) -> Tensor:
    return ops.ReduceMean(keep_dims=True)(x, -1)


def _squared_norm_product(x: Tensor) -> Tensor:
    row = x.reshape(1, -1)
    return _MATMUL_WITH_TRANSPOSED(row, row)  # a fifth of the time of the CPU's reduction, and more exact


def _squared_norm_reduced(x: Tensor) -> Tensor:
    return ops.ReduceSum(keep_dims=True)(ops.square(x.reshape(1, -1)), 1)


def column_sums(x: Tensor) -> Tensor:
    """Sums over all axes but the last, [..., D] -> [D], as a matrix product: for gradients of composite forms."""
    rows = x.reshape(-1, x.shape[-1])
    return ops.matmul(ops.ones((1, rows.shape[0]), x.dtype), rows).reshape(-1)


# ---- biases and layer norm ----


def bias_add() -> Callable[[Tensor, Tensor], Tensor]:
    """x [R, D] + bias [D]."""
    return _choose(_Shift, ops.BiasAdd)()


def layer_norm(eps: float = EPS) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last axis of x [..., D]; gamma, beta [D]."""
    return _choose(_CompositeLayerNorm, _FusedLayerNorm)(eps)


def rms_norm(eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """x / sqrt(mean of x^2 + eps) * gamma over the rows of x [R, D]; gamma [D] (Zhang and Sennrich 2019)."""
    return _choose(_CompositeRMSNorm, _FusedRMSNorm)(eps)


def swiglu() -> Callable[[Tensor], Tensor]:
    """silu(a) * b for x = [a, b], [R, 2F] -> [R, F] (Shazeer 2020, arXiv:2002.05202)."""
    return _choose(_CompositeSwiGLU(), _swiglu_fused)


class _Shift(nn.Cell):
    """x + shift over the last axis, whose gradient sums columns by `column_sums`."""

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        return _BIAS_ADD(x, shift)

    def bprop(self, x: Tensor, shift: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dout, column_sums(dout)


class _Affine(nn.Cell):
    """x * scale + shift over the last axis, whose gradients sum columns by `column_sums`."""

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x * scale + shift

    def bprop(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dout * scale, column_sums(dout * x), column_sums(dout)


class _CompositeLayerNorm(nn.Cell):
    """MindSpore's CPU kernel takes ten times as long backwards."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.affine = _Affine()

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        x = x - _row_means_product(x)
        return self.affine(x * ops.rsqrt(_row_means_product(ops.square(x)) + self.eps), gamma, beta)


class _FusedLayerNorm(nn.Cell):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.layer_norm(x, (x.shape[-1],), gamma, beta, self.eps)


class _CompositeRMSNorm(nn.Cell):
    """The factors of rows and columns meet in a product: CPU kernels keep the workspace of a broadcast to the end.

    The gradient computes them again from x, which is kept anyway.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def construct(self, x: Tensor, gamma: Tensor) -> Tensor:
        wide = ops.cast(x, mstype.float32)
        return ops.cast(wide * _MATMUL(_inverse_norm(wide, self.eps), gamma.reshape(1, -1)), x.dtype)

    def bprop(self, x: Tensor, gamma: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        wide, rows = ops.cast(x, mstype.float32), ops.cast(dout, mstype.float32)
        ones = ops.ones((1, x.shape[1]), mstype.float32)
        inverse = _inverse_norm(wide, self.eps)
        scaled = rows * _MATMUL(inverse, gamma.reshape(1, -1))
        along = _MATMUL_WITH_TRANSPOSED(scaled * wide, ones) * inverse * inverse / x.shape[1]  # [R, 1]
        gradient = scaled - wide * _MATMUL(along, ones)
        return ops.cast(gradient, x.dtype), column_sums(rows * wide * _MATMUL(inverse, ones))


def _inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean of x^2 + eps) over the rows of x [R, D]: [R, 1]."""
    share = ops.ones((1, x.shape[1]), mstype.float32) / x.shape[1]
    return _RSQRT(_MATMUL_WITH_TRANSPOSED(x * x, share) + eps)


class _FusedRMSNorm(nn.Cell):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def construct(self, x: Tensor, gamma: Tensor) -> Tensor:
        return ops.rms_norm(x, ops.cast(gamma, x.dtype), self.eps)[0]


class _CompositeSwiGLU(nn.Cell):
    """Keeps nothing but x for its gradient."""

    def construct(self, x: Tensor) -> Tensor:
        gate, up = _HALVES(x)
        return gate * _SIGMOID(gate) * up

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        gate, up = _HALVES(x)
        sigmoid = _SIGMOID(gate)
        silu = gate * sigmoid
        return (_JOIN((dout * up * (sigmoid + silu - silu * sigmoid), dout * silu)),)


def _swiglu_fused(x: Tensor) -> Tensor:
    return ops.swiglu(x, -1)


# ---- rows ----


class Permutation(nn.Cell):
    """Rows of x [R, D] in another order, with a gradient that is a gather too.

    Inputs: x, order int32 [R] (the row that comes to each place), inverse int32 [R] (the place that each row goes to).
    """

    def construct(self, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return ops.gather(x, order, 0)

    def bprop(self, x: Tensor, order: Tensor, inverse: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return ops.gather(dout, inverse, 0), ops.zeros_like(order), ops.zeros_like(inverse)


def repeated() -> Callable[[Tensor, int], Tensor]:
    """x [1, ...], to be used as if it were repeated along its first axis: on CPU it is, because kernels of broadcasts
    keep their workspace to the end of a graph."""
    return _choose(_repeat, _as_it_is)


def _repeat(x: Tensor, times: int) -> Tensor:
    return ops.tile(x, (times, *[1] * (x.ndim - 1)))


def _as_it_is(x: Tensor, times: int) -> Tensor:
    return x


# ---- attention ----


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `attend` weighs the values with: float32 [R, H, L, K], rows sum to 1."""
    scores = ops.cast(_PRODUCT_WITH_TRANSPOSED(query, key), mstype.float32) * (query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    return _SOFTMAX(scores)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1), composite on every device.

    query [R, H, L, d]; key and value [R, H, K, d], all of one dtype; bias broadcast to [R, H, L, K], MASKED where not
    to look. Returns [R, H, L, d] in the dtype of the inputs.
    """
    return _PRODUCT(ops.cast(attention_weights(query, key, bias), value.dtype), value)


def causal_attention(heads: int, size: int, dtype: mstype.TensorType, longest: int) -> Callable[..., Tensor]:
    """Attention of whole sequences, query, key and value [R, H, L, d] with L <= `longest`, each token to itself and to
    those before it.

    Flash attention takes half precision and head sizes d that are multiples of 16; the composite form takes the rest.
    """
    if dtype == mstype.float32 or size % 16 != 0:
        return _CompositeCausal(longest)
    return _choose(_CompositeCausal(longest), _FlashCausal(heads, size, longest))


class _CompositeCausal(nn.Cell):
    def __init__(self, longest: int) -> None:
        super().__init__()
        self.future = Tensor(np.triu(np.full((longest, longest), MASKED), 1), mstype.float32)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        return attend(query, key, value, self.future[:length, :length])


class _FlashCausal(nn.Cell):
    def __init__(self, heads: int, size: int, longest: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, size**-0.5
        self.future = Tensor(np.triu(np.ones((longest, longest)), 1), mstype.uint8)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        return ops.flash_attention_score(
            query,
            key,
            value,
            self.heads,
            attn_mask=self.future[:length, :length],
            scalar_value=self.scale,
            input_layout="BNSD",
        )
