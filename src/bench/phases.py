"""Phases of training as calls to time, each with its own inputs and a result on the host; and the device's ceilings.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from mindspore import Tensor, nn, ops

from src.bench.sizes import Sizes
from src.bench.timing import timed
from src.config.schema import CEConfig, Config, RLConfig
from src.decoding.generation import Generation, compile_generation
from src.models.policy import Policy
from src.training import zones
from src.training.optim import build_optimizer
from src.training.step import Update, build_loss_scale, build_step
from src.training.zones import Zone

_RATES = np.full(1000, 1e-5, np.float32)  # learning rates for more updates than a phase is repeated
_SIDE = 2048  # of matrices large enough that arithmetic limits their product
_BYTES = 1 << 28  # of arrays far larger than any cache


class Phase(NamedTuple):
    """call: runs the phase once and waits for its result; captions: how many it makes or learns from."""

    name: str
    captions: int
    call: Callable[[], object]


def device_phases(config: Config, sizes: Sizes, *, cached: bool) -> Iterator[Phase]:
    """Phases that run the encoder on B images: encode, rollout (encode and sample), update (with it, if trainable).

    cached: instead, those that start from features [B, N, C]: sample, update, reference, greedy, beam, CE step.
    """
    rl, ce = config.rl, config.ce
    sampled, updated = rl.sample_images * rl.group_size, rl.update_images * rl.group_size
    policy = zones.synthetic_policy(config, sizes.vocab, cached=cached, ends=False)
    if not cached:
        for parameter in policy.encoder.get_parameters():
            parameter.requires_grad = parameter.requires_grad and config.encoder.trainable
        yield _phase("encode", rl.sample_images, zones.encoder_zone(config, policy, rl.sample_images))
    yield _phase("sample" if cached else "rollout", sampled, zones.sampler_zone(config, policy))
    loss = zones.rl_loss_zone(config, policy, rl.update_images)
    yield Phase("update_features" if cached else "update", updated, update_call(config, policy, loss, rl))
    if cached:
        yield _phase("reference", sampled, zones.reference_zone(config, policy))
        for name, zone in zip(("greedy", "beam"), zones.decoder_zones(config, policy)):
            yield _phase(name, config.eval.batch_images, zone)
        loss = zones.ce_loss_zone(config, policy, ce.batch_images)
        yield Phase("ce_step", ce.batch_images * ce.captions_per_image, update_call(config, policy, loss, ce))


def _phase(name: str, captions: int, zone: Zone) -> Phase:
    return Phase(name, captions, waiting_call(zone))


def waiting_call(zone: Zone) -> Callable[[], object]:
    """A zone with its inputs on the device, as a call that waits for the last output."""
    tensors, function = [Tensor(array) for array in zone.inputs], zone.cell
    if isinstance(zone.cell, Generation):
        function = compile_generation(zone.name, zone.cell, lambda name, cell: cell)

    def call() -> np.ndarray:
        outputs = function(*tensors)
        return (outputs[-1] if isinstance(outputs, tuple) else outputs).asnumpy()

    return call


def update_call(config: Config, policy: Policy, loss: Zone, settings: CEConfig | RLConfig) -> Callable[[], object]:
    """A loss with its gradient and the optimiser, from arrays."""
    optimizer = build_optimizer(policy.trained_parameters(), settings.optimizer, _RATES)
    update = Update(optimizer, build_loss_scale(config.precision), settings.optimizer.grad_clip)
    step = build_step(loss.cell, update, settings.micro_batches, lambda name, cell: cell)  # every process compiles
    return lambda: step(*loss.inputs)


def compile_seconds(phases: Iterable[Phase]) -> float:
    """Seconds for compiling sampler and update in this environment, without the other work of a first call."""
    compile_cell, seconds = nn.Cell.compile, []

    def compile_timed(cell: nn.Cell, *inputs: Any, **options: Any) -> None:
        started = time.perf_counter()
        compile_cell(cell, *inputs, **options)
        seconds.append(time.perf_counter() - started)

    with patch.object(nn.Cell, "compile", compile_timed):
        for phase in phases:
            if phase.name in ("sample", "update_features"):
                phase.call()
    return sum(seconds)


class _Product(nn.Cell):
    def construct(self, a: Tensor) -> Tensor:
        return ops.matmul(a, a)[:1]


class _Negation(nn.Cell):
    def construct(self, a: Tensor) -> Tensor:
        return (-a)[:1]


def measure_ceilings(repeats: int) -> dict[str, float]:
    """matmul_gflops: 10^9 float32 operations/s of a square product; bandwidth_gbs: 10^9 bytes/s read and written."""
    side = Tensor(np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32))
    line = Tensor(np.ones(_BYTES // 4, np.float32))
    product, negation = _Product(), _Negation()
    product_s = timed(lambda: product(side).asnumpy(), repeats)["seconds"]
    negation_s = timed(lambda: negation(line).asnumpy(), repeats)["seconds"]
    return {"matmul_gflops": 2e-9 * _SIDE**3 / product_s, "bandwidth_gbs": 2e-9 * _BYTES / negation_s}
