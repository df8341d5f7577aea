"""What the machine can do at most, measured with MindSpore's own operators: matrix products and memory traffic."""

import numpy as np
from mindspore import Tensor, nn, ops

from src.bench.timing import timed

_SIDE = 2048  # of the matrices: large enough that a product is limited by arithmetic
_BYTES = 1 << 28  # of the arrays that are copied: far larger than any cache


class _Product(nn.Cell):
    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.matmul(a, b)[:1]


class _Negation(nn.Cell):
    def construct(self, a: Tensor) -> Tensor:
        return (-a)[:1]


def measure_ceilings(repeats: int) -> dict[str, float]:
    """matmul_gflops: 10^9 float32 operations/s of a square product; bandwidth_gbs: 10^9 bytes/s read and written."""
    side = Tensor(np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32))
    line = Tensor(np.ones(_BYTES // 4, np.float32))
    product, negation = _Product(), _Negation()

    product_s = timed(lambda: product(side, side).asnumpy(), repeats).seconds
    negation_s = timed(lambda: negation(line).asnumpy(), repeats).seconds
    return {"matmul_gflops": 2e-9 * _SIDE**3 / product_s, "bandwidth_gbs": 2e-9 * _BYTES / negation_s}
