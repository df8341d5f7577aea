"""One update as one graph: gradient, finite check, global-norm clipping, AdamW; or in parts, where memory is short.

With float16 products the loss is multiplied by a scale, so that small gradients do not underflow, and the gradients are
divided by it (Micikevicius et al. 2018, section 3.2). An update whose gradients overflow is skipped, and the scale is
halved.
"""

from collections.abc import Callable, Sequence

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.amp import DynamicLossScaler

from src.models import kernels
from src.runtime.compile_cache import Compile

Step = Callable[..., dict[str, float]]

_EACH = ops.HyperMap()  # compiles faster than a loop
_MUL_NO_NAN = ops.MulNoNan()  # 0 times NaN or infinity is 0


def build_loss_scale(precision: str) -> DynamicLossScaler | None:
    """The scale of the loss for a configured precision: doubled after 1,000 updates without overflow, at least 1."""
    return DynamicLossScaler(scale_value=2.0**15, scale_factor=2, scale_window=1000) if precision == "float16" else None


def build_step(loss_cell: nn.Cell, update: "Update", micro_batches: int, compile_cell: Compile) -> Step:
    """An update as a function of the loss cell's inputs as arrays.

    It returns by name: `loss`, `grad_norm` before clipping, the loss cell's STATS, and `loss_scale` if there is one.
    Where the loss or the norm is not finite nothing is updated; the caller sees it in what is returned. The loss must
    be a sum over rows: then `micro_batches` parts give what one batch gives, and so do the shares of several workers,
    over which gradients and results are summed.
    """
    names = ("loss", "grad_norm", *loss_cell.STATS, *(() if update.loss_scale is None else ("loss_scale",)))
    if micro_batches == 1:
        step = compile_cell("step", TrainStep(loss_cell, update))
        return lambda *inputs: _named(names, step(*map(Tensor, inputs)))
    sums = GradientSum(loss_cell, update)
    add_gradient = compile_cell("gradient_sum", sums)
    apply = compile_cell("update", SummedUpdate(sums, update))

    def step_in_parts(*inputs: np.ndarray) -> dict[str, float]:
        values = sum(
            add_gradient(*map(Tensor, parts)).asnumpy()
            for parts in zip(*(np.split(array, micro_batches) for array in inputs))
        )
        return _named(names, apply(Tensor(values)))

    return step_in_parts


def _named(names: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(names, values.asnumpy().tolist(), strict=True))


class WorkerSum(nn.Cell):
    """The sum over workers of each tensor of a tuple, all float32; of one worker, the tuple itself."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce() if workers > 1 else None

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.all_reduce is None:
            return tensors
        flat = self.all_reduce(ops.concat(_EACH(_flat, tensors)))  # one: each waits for the slowest worker
        parts = ops.split(flat, [tensor.size for tensor in tensors])
        return _EACH(_shaped_like, parts, tensors)


class Update(nn.Cell):
    """Updates by the gradients of all workers.

    Inputs: loss and statistics [1 + k], gradients (times the loss scale where there is one). Returns the values that
    `build_step` names, in its order.
    """

    def __init__(
        self, optimizer: nn.Optimizer, loss_scale: DynamicLossScaler | None, grad_clip: float, workers: int = 1
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        if loss_scale is not None:  # not a cell, but a cached graph reads only parameters that its cell owns
            self.scale_state = ParameterTuple([loss_scale.scale_value, loss_scale.counter])
        self.grad_clip = grad_clip
        self.squared_norm = kernels.squared_norm()
        self.worker_sum = WorkerSum(workers)

    def construct(self, values: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        scale = self.loss_scale
        summed = self.worker_sum((values, *gradients))
        values, gradients = summed[0], summed[1:]
        if scale is not None:
            gradients = scale.unscale(gradients)
        norm = ops.sqrt(ops.reduce_sum(ops.stack(_EACH(self.squared_norm, gradients))))
        finite = ops.isfinite(values[0] + norm)
        if scale is not None:
            values = ops.concat((values, scale.scale_value.reshape(1)))
            values = ops.depend(values, scale.adjust(ops.depend(finite, values)))  # read before it is written
        share = ops.cast(finite, mstype.float32)
        values = ops.depend(values, self.optimizer(clip(gradients, norm, self.grad_clip, share), share.reshape(1)))
        return ops.concat((values[:1], norm.reshape(1), values[1:]))


class Gradient(nn.Cell):
    """A loss cell that returns (scalar, tuple of scalars) as (float32 [1 + k], gradients times the loss scale)."""

    def __init__(self, loss_cell: nn.Cell, weights: ParameterTuple, loss_scale: DynamicLossScaler | None) -> None:
        super().__init__()
        self.loss_cell = loss_cell

        def scaled(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss, stats = loss_cell(*inputs)
            return loss if loss_scale is None else loss_scale.scale(loss), (loss, *stats)

        self.value_and_grad = ms.value_and_grad(scaled, None, weights, has_aux=True)

    def construct(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, values), gradients = self.value_and_grad(*inputs)
        return ops.stack(values).astype(mstype.float32), gradients


class TrainStep(nn.Cell):
    """The update by one batch. Inputs: as for the loss cell."""

    def __init__(self, loss_cell: nn.Cell, update: Update) -> None:
        super().__init__()
        self.gradient = Gradient(loss_cell, ParameterTuple(update.optimizer.parameters), update.loss_scale)
        self.update = update

    def construct(self, *inputs: Tensor) -> Tensor:
        values, gradients = self.gradient(*inputs)
        return self.update(values, gradients)


class GradientSum(nn.Cell):
    """Adds the gradient of a micro-batch to `sums`. Returns float32 [1 + k]: its loss and statistics."""

    def __init__(self, loss_cell: nn.Cell, update: Update) -> None:
        super().__init__()
        weights = ParameterTuple(update.optimizer.parameters)
        self.gradient = Gradient(loss_cell, weights, update.loss_scale)
        self.sums = ParameterTuple([Parameter(ops.zeros_like(weight), name=f"sum.{weight.name}") for weight in weights])

    def construct(self, *inputs: Tensor) -> Tensor:
        values, gradients = self.gradient(*inputs)
        for total, gradient in zip(self.sums, gradients):
            values = ops.depend(values, ops.assign_add(total, gradient))
        return values


class SummedUpdate(nn.Cell):
    """Updates by the gradients that a GradientSum holds, and empties it. Input: the sum of what it has returned."""

    def __init__(self, gradient_sum: GradientSum, update: Update) -> None:
        super().__init__()
        self.sums = gradient_sum.sums
        self.update = update

    def construct(self, values: Tensor) -> Tensor:
        values = self.update(values, self.sums)
        for total in self.sums:
            values = ops.depend(values, ops.assign(total, ops.zeros_like(total)))
        return values


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


def _shaped_like(flat: Tensor, tensor: Tensor) -> Tensor:
    return flat.reshape(tensor.shape)


def clip(gradients: tuple[Tensor, ...], norm: Tensor, largest: float, finite: Tensor) -> tuple[Tensor, ...]:
    """Gradients scaled down to the norm `largest` where theirs is larger; all 0 where `finite` is 0."""
    factor = _MUL_NO_NAN(ops.minimum(largest / (norm + 1e-6), 1.0), finite)
    return _EACH(ops.partial(_scaled, factor), gradients)


def _scaled(factor: Tensor, gradient: Tensor) -> Tensor:
    return _MUL_NO_NAN(gradient, factor)
