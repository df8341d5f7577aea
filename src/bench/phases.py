"""The phases of training as calls that can be timed, each with inputs of its own and a result on the host.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from src.bench.sizes import Sizes
from src.config.schema import CEConfig, Config, RLConfig
from src.models.policy import Policy
from src.training.optim import build_optimizer
from src.training.step import Update, build_loss_scale, build_step
from src.training.zones import (
    Zone,
    ce_loss_zone,
    decoder_zones,
    encoder_zone,
    reference_zone,
    rl_loss_zone,
    sampler_zone,
    synthetic_policy,
)

RATES = np.full(1000, 1e-5, np.float32)  # learning rates: more than a phase is repeated


class Phase(NamedTuple):
    """`call` runs the phase once and waits for its result; `captions` is how many it makes or learns from."""

    name: str
    captions: int
    call: Callable[[], object]


def pixel_phases(config: Config, sizes: Sizes) -> Iterator[Phase]:
    """What runs the encoder on B images: encode, rollout (encode and sample), update (encoder trained, if asked)."""
    policy = synthetic_policy(config, sizes.vocab, cached=False, ends=False)
    for parameter in policy.encoder.get_parameters():
        parameter.requires_grad = parameter.requires_grad and config.encoder.trainable
    rl = config.rl
    yield _phase("encode", rl.sample_images, encoder_zone(config, policy, rl.sample_images))
    yield _phase("rollout", rl.sample_images * rl.group_size, sampler_zone(config, policy))
    loss = rl_loss_zone(config, policy, rl.update_images)
    yield Phase("update", rl.update_images * rl.group_size, _update(config, policy, loss, rl))


def feature_phases(config: Config, sizes: Sizes) -> Iterator[Phase]:
    """What starts from given features [B, N, C]: sample, update, reference, greedy, beam, CE step."""
    policy = synthetic_policy(config, sizes.vocab, cached=True, ends=False)
    rl, ce = config.rl, config.ce
    sampled = rl.sample_images * rl.group_size
    yield _phase("sample", sampled, sampler_zone(config, policy))
    loss = rl_loss_zone(config, policy, rl.update_images)
    yield Phase("update_features", rl.update_images * rl.group_size, _update(config, policy, loss, rl))
    yield _phase("reference", sampled, reference_zone(config, policy))
    for name, zone in zip(("greedy", "beam"), decoder_zones(config, policy)):
        yield _phase(name, config.eval.batch_images, zone)
    loss = ce_loss_zone(config, policy, ce.batch_images)
    yield Phase("ce_step", ce.batch_images * ce.captions_per_image, _update(config, policy, loss, ce))


def _phase(name: str, captions: int, zone: Zone) -> Phase:
    """A zone whose inputs are on the device, and whose last output is waited for."""
    tensors = [Tensor(array) for array in zone.inputs]

    def call() -> np.ndarray:
        outputs = zone.cell(*tensors)
        return (outputs[-1] if isinstance(outputs, tuple) else outputs).asnumpy()

    return Phase(name, captions, call)


def _update(config: Config, policy: Policy, loss: Zone, settings: CEConfig | RLConfig) -> Callable[[], object]:
    """A loss with its gradient and the optimiser, from arrays."""
    optimizer = build_optimizer(policy.trained_parameters(), settings.optimizer, RATES)
    update = Update(optimizer, build_loss_scale(config.precision), settings.optimizer.grad_clip)
    step = build_step(loss.cell, update, settings.micro_batches, uncached)
    return lambda: step(*loss.inputs)


def uncached(name: str, cell: nn.Cell) -> nn.Cell:
    """In place of GraphCache.compile: every process compiles."""
    return cell
