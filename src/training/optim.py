"""AdamW with warm-up and cosine decay, from MindFormers."""

from mindformers.core.lr import CosineWithWarmUpLR
from mindformers.core.optim import AdamW
from mindspore import Parameter

from src.config import OptimizerConfig


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


def build_optimizer(parameters: list[Parameter], config: OptimizerConfig, total_steps: int) -> AdamW:
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
    return AdamW(groups, learning_rate=schedule, betas=(0.9, config.beta2), eps=1e-8, weight_decay=0.0)
