"""One update as one graph: gradient, finite check, global-norm clipping, AdamW."""

import mindspore as ms
import mindspore.common.dtype as mstype
from mindspore import ParameterTuple, Tensor, nn, ops


class TrainStep(nn.Cell):
    """Wraps a loss cell that returns (scalar, tuple of scalars) and updates the optimiser's parameters.

    Inputs: those of the loss cell. Returns float32 [2 + k]: loss, gradient norm before clipping, then the loss cell's
    statistics. Where the loss or the norm is not finite nothing is updated; the caller sees it in what is returned.
    """

    def __init__(self, loss_cell: nn.Cell, optimizer: nn.Optimizer, grad_clip: float) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.weights = ParameterTuple(optimizer.parameters)
        self.grad_clip = grad_clip
        self.value_and_grad = ms.value_and_grad(loss_cell, None, self.weights, has_aux=True)

    def construct(self, *inputs: Tensor) -> Tensor:
        (loss, stats), gradients = self.value_and_grad(*inputs)
        squares = ()
        for gradient in gradients:
            row = gradient.reshape(1, -1)
            squares += (ops.matmul(row, row.T),)  # a fifth of the time of MindSpore's CPU reduction, and more exact
        norm = ops.sqrt(ops.reduce_sum(ops.stack(squares)))
        finite = ops.isfinite(loss + norm)
        if finite:
            factor = ops.minimum(self.grad_clip / (norm + 1e-6), 1.0)
            clipped = ()
            for gradient in gradients:
                clipped += (gradient * factor,)
            loss = ops.depend(loss, self.optimizer(clipped))
        return ops.stack((loss, norm, *stats)).astype(mstype.float32)
