"""Layer norm, RMSNorm and SwiGLU, in the forms that src.models.kernels explains."""

from collections.abc import Callable

import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.models.kernels import choose, column_sums, row_means_product

EPS = 1e-5  # of layer norms, where nothing else is said

# Operators as they are, as in src.models.kernels.
_SIGMOID = ops.Sigmoid()
_HALVES = ops.Split(-1, 2)
_JOIN = ops.Concat(-1)
_RSQRT = ops.Rsqrt()
_MATMUL = ops.MatMul()
_MATMUL_WITH_TRANSPOSED = ops.MatMul(transpose_b=True)


def layer_norm(eps: float = EPS) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last axis of x [..., D]; gamma, beta [D]."""
    return choose(_CompositeLayerNorm, _FusedLayerNorm)(eps)


def rms_norm(eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """x / sqrt(mean of x^2 + eps) * gamma over the rows of x [R, D]; gamma [D] (Zhang and Sennrich 2019)."""
    return choose(_CompositeRMSNorm, _FusedRMSNorm)(eps)


def swiglu() -> Callable[[Tensor], Tensor]:
    """silu(a) * b for x = [a, b], [R, 2F] -> [R, F] (Shazeer 2020, arXiv:2002.05202)."""
    return choose(_CompositeSwiGLU(), _swiglu_fused)


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
        x = x - row_means_product(x)
        return self.affine(x * ops.rsqrt(row_means_product(ops.square(x)) + self.eps), gamma, beta)


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
