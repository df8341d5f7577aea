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

MASKED = -1e9  # added to a logit that must not count; its exponential is 0 in float32

# Operators as they are: the functions of `ops` around them make several graphs of each call, and compile longer.
_BIAS_ADD = ops.BiasAdd()
_SOFTMAX = ops.Softmax(-1)
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


def choose(composite: Any, fused: Any) -> Any:
    """Return the form for the device."""
    return fused if (_target or ms.get_context("device_target")) == "Ascend" else composite


# ---- reductions ----


def row_sums() -> Callable[[Tensor], Tensor]:
    """x [..., D] -> sums over the last axis [..., 1]."""
    return choose(_row_sums_product, _row_sums_reduced)


def row_means() -> Callable[[Tensor], Tensor]:
    """x [..., D] -> means over the last axis [..., 1]."""
    return choose(row_means_product, _row_means_reduced)


def squared_norm() -> Callable[[Tensor], Tensor]:
    """x of any shape -> the sum of its squares [1, 1]."""
    return choose(_squared_norm_product, _squared_norm_reduced)


def _row_sums_product(x: Tensor) -> Tensor:
    return ops.matmul(x, ops.ones((x.shape[-1], 1), x.dtype))


def _row_sums_reduced(x: Tensor) -> Tensor:
    return ops.ReduceSum(keep_dims=True)(x, -1)


def row_means_product(x: Tensor) -> Tensor:
    """`row_means` for CPU and GPU."""
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


def bias_add() -> Callable[[Tensor, Tensor], Tensor]:
    """x [R, D] + bias [D]."""
    return choose(_Shift, ops.BiasAdd)()


class _Shift(nn.Cell):
    """x + shift over the last axis, whose gradient sums columns by `column_sums`."""

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        return _BIAS_ADD(x, shift)

    def bprop(self, x: Tensor, shift: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dout, column_sums(dout)


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
    return choose(_repeat, _as_it_is)


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
    return choose(_CompositeCausal(longest), _FlashCausal(heads, size, longest))


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
