"""AdamW of MindFormers with warm-up and cosine decay, without branches: a branch on a tensor waits for the device."""

from typing import Any

import mindspore.common.dtype as mstype
import numpy as np
from mindformers.core.optim.adamw import AdamW  # mindformers.core.optim.AdamW makes another class than it is
from mindspore import Parameter, Tensor, ops

from src.config.schema import OptimizerConfig

_ADAM = ops.Adam()


class FusedAdamW(AdamW):
    """MindFormers' AdamW with one operator per parameter, where it takes fifteen passes over parameter and moments.

    Inputs: gradients, and `finite`, float32 [1]: 1, or 0 for an update that changes nothing (the gradients are 0 then).
    `ops.Adam` adds epsilon to the root of the second moment before its bias is corrected: with epsilon times the
    correction, that is algorithm 2 of Loshchilov and Hutter 2019.
    """

    def construct(self, gradients: tuple[Tensor, ...], finite: Tensor) -> tuple[Tensor, ...]:
        decays, lr = self.get_weight_decay(), self.get_lr() * finite
        step = ops.cast(self.global_step, mstype.float32) + 1.0
        power1, power2 = self.beta1**step, self.beta2**step
        eps = self.eps * ops.sqrt(1.0 - power2)
        # With both betas at 1, gradients and learning rate at 0, moments and parameters stay as they are.
        beta1, beta2 = 1.0 - (1.0 - self.beta1) * finite, 1.0 - (1.0 - self.beta2) * finite
        self.assignadd(self.global_step, ops.cast(finite, mstype.int32))
        update = ops.partial(_update, power1, power2, lr, beta1, beta2, eps)
        moments = (self.exp_avg, self.exp_avg_sq)
        return self.hyper_map(update, self.decay_flags, decays, self._parameters, *moments, gradients)


def _update(
    power1: Tensor,
    power2: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    decayed: bool,
    decay: Tensor,
    parameter: Parameter,
    mean: Parameter,
    square: Parameter,
    gradient: Tensor,
) -> Tensor:
    """The update of one parameter."""
    if decayed:
        ops.assign(parameter, parameter * (1.0 - lr * decay))
    return _ADAM(parameter, mean, square, power1, power2, lr, beta1, beta2, eps, gradient)[0]


def learning_rates(config: OptimizerConfig, total_steps: int) -> np.ndarray:
    """float32 [total_steps]: linear warm-up to `lr`, then a half cosine down to `final_lr`, which stays."""
    warmup = int(config.warmup_ratio * total_steps)
    first = config.lr / max(1, warmup)  # from 0, the first update would do nothing
    rising = np.linspace(first, config.lr, warmup, endpoint=False)
    decay = max(1, round(config.decay_ratio * total_steps) - warmup)
    progress = np.minimum(np.arange(total_steps - warmup) / decay, 1.0)
    falling = config.final_lr + (config.lr - config.final_lr) * 0.5 * (1.0 + np.cos(np.pi * progress))
    return np.concatenate((rising, falling)).astype(np.float32)


def build_optimizer(parameters: list[Parameter], config: OptimizerConfig, rates: np.ndarray) -> FusedAdamW:
    """AdamW (Loshchilov and Hutter 2019) with `learning_rates`; biases, norms and other vectors are not decayed."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"order_params": parameters},
    ]
    groups = [group for group in groups if group.get("params", parameters)]
    return FusedAdamW(groups, learning_rate=Tensor(rates), betas=(0.9, config.beta2), eps=1e-8, weight_decay=0.0)
