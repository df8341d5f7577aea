"""AdamW with warm-up and cosine decay, from MindFormers."""

import mindspore.common.dtype as mstype
from mindformers.core.lr import CosineWithWarmUpLR
from mindformers.core.optim import AdamW
from mindspore import Parameter, Tensor, ops

from src.config import OptimizerConfig


class FusedAdamW(AdamW):
    """MindFormers' AdamW with one operator per parameter, where it takes fifteen passes over parameter and moments.

    `ops.Adam` adds epsilon to the root of the second moment before its bias is corrected: with epsilon times the
    correction, that is algorithm 2 of Loshchilov and Hutter 2019.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.adam = ops.Adam()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        decays, lr = self.get_weight_decay(), self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        step = ops.cast(self.global_step, mstype.float32)
        power1, power2 = self.beta1**step, self.beta2**step
        eps = self.eps * ops.sqrt(1.0 - power2)
        updated = ()
        for index, parameter in enumerate(self._parameters):
            if self.decay_flags[index]:
                ops.assign(parameter, parameter * (1.0 - lr * decays[index]))
            moments = (self.exp_avg[index], self.exp_avg_sq[index])
            rates = (power1, power2, lr, self.beta1, self.beta2, eps)
            updated += (self.adam(parameter, *moments, *rates, gradients[index])[0],)
        return updated


def build_schedule(config: OptimizerConfig, total_steps: int) -> CosineWithWarmUpLR:
    """Learning rate of each step: linear warm-up to `lr`, a half cosine down to `final_lr`, which then stays."""
    warmup_steps = int(config.warmup_ratio * total_steps)
    return CosineWithWarmUpLR(
        learning_rate=config.lr,
        warmup_steps=warmup_steps,
        total_steps=max(1, round(config.decay_ratio * total_steps)),
        lr_end=config.final_lr,
        warmup_lr_init=config.lr / max(1, warmup_steps),  # from 0, the first update would do nothing
    )


def build_optimizer(parameters: list[Parameter], config: OptimizerConfig, total_steps: int) -> FusedAdamW:
    """AdamW (Loshchilov and Hutter 2019); biases, norms and other vectors are not decayed."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"order_params": parameters},
    ]
    groups = [group for group in groups if group.get("params", parameters)]
    schedule = build_schedule(config, total_steps)
    return FusedAdamW(groups, learning_rate=schedule, betas=(0.9, config.beta2), eps=1e-8, weight_decay=0.0)
