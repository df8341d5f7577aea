"""Linear layers that are fused into one product, and their LoRA adapters (Hu et al. 2021, arXiv:2106.09685).

Letters: n rows, C input channels, D output width (the sum of the fused layers'), r rank, A adapted layers of a product.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, initializer

from src.models import kernels


@dataclass(frozen=True)
class LoRA:
    """rank r, alpha (the update is scaled by alpha / r), targets: the names of the adapted layers (LORA_TARGETS)."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


class Projection(nn.Cell):
    """x [n, C] -> [n, D]: the layers `names` of these `widths`, side by side in one weight [C, D].

    Of few rows, CPUs compute a product with [C, D] in two thirds of the time of one with [D, C].

    With LoRA, x A^T B^T is added: `lora_down` [A*r, C] stacks the A of each adapted layer, and B is `lora_up` [D, A*r]
    times `blocks`, alpha / r where a layer's rows meet its own A, else 0.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        names: tuple[str, ...],
        dtype: mstype.TensorType,
        *,
        has_bias: bool,
        lora: LoRA | None,
    ) -> None:
        super().__init__()
        self.names, self.widths, self.dtype = names, widths, dtype
        total = sum(widths)
        stored = dtype if lora is not None else mstype.float32  # what is trained is held in full precision
        self.weight = Parameter(Tensor(np.zeros((channels, total), np.float32), stored), name="weight")
        self.bias = Parameter(np.zeros(total, np.float32), name="bias") if has_bias else None
        self.adapted = [] if lora is None else [place for place, name in enumerate(names) if name in lora.targets]
        self.product, self.lowrank_product = ops.MatMul(), ops.MatMul(transpose_b=True)
        self.shift, self.scale, self.cast = kernels.bias_add(), ops.Mul(), ops.Cast()
        for operator in (self.scale, self.cast):  # of parameters alone: computed again, they make a cycle in the graph
            operator.recompute(False)
        if self.adapted:
            assert lora is not None
            self.rank = lora.rank
            count = len(self.adapted) * lora.rank
            down = initializer(HeUniform(math.sqrt(5)), (count, channels), mstype.float32)  # as PEFT
            self.lora_down = Parameter(down, name="lora_down")
            self.lora_up = Parameter(np.zeros((total, count), np.float32), name="lora_up")
            blocks = np.zeros((total, count), np.float32)
            for rows, columns, _ in self.adapted_parts():
                blocks[rows, columns] = lora.alpha / lora.rank
            self.blocks = Tensor(blocks)

    def parts(self) -> Iterator[tuple[slice, str]]:
        """Yield the outputs that belong to each layer, and the layer's name."""
        ends = list(accumulate(self.widths))
        for width, end, name in zip(self.widths, ends, self.names):
            yield slice(end - width, end), name

    def adapted_parts(self) -> Iterator[tuple[slice, slice, str]]:
        """Yield, for each adapted layer, its rows of `lora_up`, its columns of `lora_up` (rows of `lora_down`), and its
        name.
        """
        parts = list(self.parts())
        for number, place in enumerate(self.adapted):
            rows, name = parts[place]
            yield rows, slice(number * self.rank, (number + 1) * self.rank), name

    def construct(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: dropout factors [n, C] of the adapters' input, or None."""
        y = self.product(ops.cast(x, self.dtype), self.cast(self.weight, self.dtype))
        if len(self.adapted) > 0:
            dropped = x if keep is None else x * keep
            low = self.lowrank_product(ops.cast(dropped, self.dtype), self.cast(self.lora_down, self.dtype))  # [n, A*r]
            y = y + self.lowrank_product(low, self.cast(self.scale(self.lora_up, self.blocks), self.dtype))
        if self.bias is not None:
            y = self.shift(y, self.cast(self.bias, self.dtype))
        return y
