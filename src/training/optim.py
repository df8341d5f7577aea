"""AdamW of MindFormers with warm-up and cosine decay, without branches: a branch on a tensor waits for the device."""

from collections.abc import Callable
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
        decays, rates = self.get_weight_decay(), self.get_lr()
        if not self.is_group_lr:
            rates = (rates,) * len(self._parameters)
        step = ops.cast(self.global_step, mstype.float32) + 1.0
        power1, power2 = self.beta1**step, self.beta2**step
        eps = self.eps * ops.sqrt(1.0 - power2)
        # With both betas at 1, gradients and learning rate at 0, moments and parameters stay as they are.
        beta1, beta2 = 1.0 - (1.0 - self.beta1) * finite, 1.0 - (1.0 - self.beta2) * finite
        self.assignadd(self.global_step, ops.cast(finite, mstype.int32))
        update = ops.partial(_update, power1, power2, finite, beta1, beta2, eps)
        moments = (self.exp_avg, self.exp_avg_sq)
        return self.hyper_map(update, rates, self.decay_flags, decays, self._parameters, *moments, gradients)


def _update(
    power1: Tensor,
    power2: Tensor,
    finite: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    rate: Tensor,
    decayed: bool,
    decay: Tensor,
    parameter: Parameter,
    mean: Parameter,
    square: Parameter,
    gradient: Tensor,
) -> Tensor:
    """The update of one parameter."""
    lr = rate * finite
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


def build_optimizer(
    parameters: list[Parameter],
    config: OptimizerConfig,
    rates: np.ndarray,
    part_of: Callable[[Parameter], str] = lambda parameter: "",
) -> FusedAdamW:
    """AdamW (Loshchilov and Hutter 2019) with `learning_rates`; biases, norms and other vectors are not decayed.

    `projector_lr` and `adapter_lr` scale the rates of the parameters that `part_of` (of a policy) calls so.
    """
    rates_of_parts = (("projector", config.projector_lr), ("adapter", config.adapter_lr))
    own = {part: rate for part, rate in rates_of_parts if rate is not None}
    places: dict[tuple[str, bool], list[Parameter]] = {}
    for parameter in parameters:
        part = part_of(parameter)
        places.setdefault((part if part in own else "", parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (part, is_matrix), members in places.items():
        group = {"params": members, "weight_decay": config.weight_decay if is_matrix else 0.0}
        if part:
            group["lr"] = Tensor((rates * (own[part] / config.lr)).astype(np.float32))
        groups.append(group)
    groups.append({"order_params": parameters})
    return FusedAdamW(groups, learning_rate=Tensor(rates), betas=(0.9, config.beta2), eps=1e-8, weight_decay=0.0)
