"""One update as one graph: gradient, finite check, global-norm clipping, AdamW; or in parts, where memory is short."""

from collections.abc import Callable

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.compile_cache import Keep

Step = Callable[..., np.ndarray]

_EACH = ops.HyperMap()  # compiles faster than a loop
_PRODUCT = ops.MatMul(transpose_b=True)
_MUL_NO_NAN = ops.MulNoNan()  # 0 times NaN or infinity is 0


def build_step(
    loss_cell: nn.Cell, optimizer: nn.Optimizer, grad_clip: float, micro_batches: int, workers: int, keep: Keep
) -> Step:
    """An update as a function of the loss cell's inputs as arrays; `keep` makes a cell callable.

    It returns float32 [2 + k]: loss, gradient norm before clipping, then the loss cell's statistics. Where the loss or
    the norm is not finite nothing is updated; the caller sees it in what is returned. The loss must be a sum over
    rows: then `micro_batches` parts give what one batch gives, and so do the shares of several workers, over which
    gradients and results are summed.
    """
    if micro_batches == 1:
        step = keep("step", TrainStep(loss_cell, optimizer, grad_clip, WorkerSum(workers)))
        return lambda *inputs: step(*map(Tensor, inputs)).asnumpy()
    sums = GradientSum(loss_cell, optimizer)
    add_gradient = keep("gradient_sum", sums)
    update = keep("update", SummedUpdate(sums, optimizer, grad_clip, WorkerSum(workers)))

    def step_in_parts(*inputs: np.ndarray) -> np.ndarray:
        values = sum(
            add_gradient(*map(Tensor, parts)).asnumpy()
            for parts in zip(*(np.split(array, micro_batches) for array in inputs))
        )
        return update(Tensor(values)).asnumpy()

    return step_in_parts


class WorkerSum(nn.Cell):
    """The sum over workers of each tensor of a tuple; of one worker, the tuple itself."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        # Operators of the same `fusion` are merged into few large ones where the backend can (Ascend, GPU).
        self.all_reduce = ops.AllReduce().add_prim_attr("fusion", 1) if workers > 1 else None

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.all_reduce is None:
            return tensors
        return _EACH(self.all_reduce, tensors)


class TrainStep(nn.Cell):
    """Wraps a loss cell that returns (scalar, tuple of scalars) and updates the optimiser's parameters."""

    def __init__(self, loss_cell: nn.Cell, optimizer: nn.Optimizer, grad_clip: float, worker_sum: WorkerSum) -> None:
        super().__init__()
        self.worker_sum = worker_sum
        self.optimizer = optimizer
        self.weights = ParameterTuple(optimizer.parameters)
        self.grad_clip = grad_clip
        self.value_and_grad = ms.value_and_grad(loss_cell, None, self.weights, has_aux=True)

    def construct(self, *inputs: Tensor) -> Tensor:
        (loss, stats), gradients = self.value_and_grad(*inputs)
        values = ops.stack((loss, *stats)).astype(mstype.float32)
        return apply_update(self.optimizer, values, gradients, self.grad_clip, self.worker_sum)


def apply_update(
    optimizer: nn.Optimizer, values: Tensor, gradients: tuple[Tensor, ...], grad_clip: float, worker_sum: WorkerSum
) -> Tensor:
    """Update by the gradients of all workers. values: loss and statistics [1 + k]; returns [2 + k], the norm second."""
    (values,) = worker_sum((values,))
    gradients = worker_sum(gradients)
    norm = global_norm(gradients)
    finite = ops.cast(ops.isfinite(values[0] + norm), mstype.float32)
    values = ops.depend(values, optimizer(clip(gradients, norm, grad_clip, finite), finite.reshape(1)))
    return ops.concat((values[:1], norm.reshape(1), values[1:]))


class GradientSum(nn.Cell):
    """Adds the gradient of a micro-batch to `sums`. Returns float32 [1 + k]: its loss and statistics."""

    def __init__(self, loss_cell: nn.Cell, optimizer: nn.Optimizer) -> None:
        super().__init__()
        self.weights = ParameterTuple(optimizer.parameters)
        self.value_and_grad = ms.value_and_grad(loss_cell, None, self.weights, has_aux=True)
        self.sums = ParameterTuple(
            [Parameter(ops.zeros_like(weight), name=f"sum.{weight.name}") for weight in optimizer.parameters]
        )

    def construct(self, *inputs: Tensor) -> Tensor:
        (loss, stats), gradients = self.value_and_grad(*inputs)
        for total, gradient in zip(self.sums, gradients):
            loss = ops.depend(loss, ops.assign_add(total, gradient))
        return ops.stack((loss, *stats)).astype(mstype.float32)


class SummedUpdate(nn.Cell):
    """Updates by the gradients that a GradientSum holds, and empties it.

    Input: the sum of what it has returned [1 + k]. Returns float32 [2 + k], with the norm of the gradient second.
    """

    def __init__(
        self, gradient_sum: GradientSum, optimizer: nn.Optimizer, grad_clip: float, worker_sum: WorkerSum
    ) -> None:
        super().__init__()
        self.sums = gradient_sum.sums
        self.optimizer = optimizer
        self.grad_clip = grad_clip
        self.worker_sum = worker_sum

    def construct(self, values: Tensor) -> Tensor:
        values = apply_update(self.optimizer, values, self.sums, self.grad_clip, self.worker_sum)
        for total in self.sums:
            values = ops.depend(values, ops.assign(total, ops.zeros_like(total)))
        return values


def global_norm(gradients: tuple[Tensor, ...]) -> Tensor:
    """The Euclidean norm of all gradients together: a scalar."""
    return ops.sqrt(ops.reduce_sum(ops.stack(_EACH(_squared_norm, gradients))))


def _squared_norm(gradient: Tensor) -> Tensor:
    row = gradient.reshape(1, -1)
    return _PRODUCT(row, row)  # a fifth of the time of MindSpore's CPU reduction, and more exact


def clip(gradients: tuple[Tensor, ...], norm: Tensor, largest: float, finite: Tensor) -> tuple[Tensor, ...]:
    """Gradients scaled down to the norm `largest` where theirs is larger; all 0 where `finite` is 0."""
    factor = _MUL_NO_NAN(ops.minimum(largest / (norm + 1e-6), 1.0), finite)
    return _EACH(ops.partial(_scaled, factor), gradients)


def _scaled(factor: Tensor, gradient: Tensor) -> Tensor:
    return _MUL_NO_NAN(gradient, factor)
