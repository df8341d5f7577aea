"""The phases of training as calls that can be timed, each with inputs of its own and a result on the host.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from src.bench.sizes import Sizes
from src.config.schema import Config
from src.decoding.beam import BeamDecoder
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses.cells import CELossCell, GRPOLossCell, LogprobCell
from src.models.captioner.policy import Captioner, build_captioner
from src.training.optim import build_optimizer
from src.training.step import build_loss_scale, build_step
from src.training.zones import Encode

SPECIALS = (0, 1, 2)  # PAD, BOS, EOS; none is ever sampled, so that every caption has all T tokens
RATES = np.full(1000, 1e-5, np.float32)  # learning rates: more than a phase is repeated


class Phase(NamedTuple):
    """`call` runs the phase once and waits for its result; `captions` is how many it makes or learns from."""

    name: str
    captions: int
    call: Callable[[], object]


def pixel_phases(config: Config, sizes: Sizes) -> Iterator[Phase]:
    """What runs the encoder on B images: encode, rollout (encode and sample), update (encoder trained, if asked)."""
    captioner = _captioner(config, sizes, cached=False)
    for parameter in captioner.encoder.get_parameters():
        parameter.requires_grad = parameter.requires_grad and config.encoder.trainable
    pixels = Tensor(_normal(config.grpo.sample_images, 3, config.data.image_size, config.data.image_size))
    encode = Encode(captioner.encoder)
    yield Phase("encode", config.grpo.sample_images, lambda: encode(pixels).asnumpy())
    yield from _sampling("rollout", captioner, config, pixels)
    yield from _update("update", captioner, config, sizes, pixels)


def feature_phases(config: Config, sizes: Sizes) -> Iterator[Phase]:
    """What starts from given features [B, N, C]: sample, update, reference, greedy, beam, CE step."""
    captioner = _captioner(config, sizes, cached=True)
    encoder = captioner.encoder
    features = Tensor(_normal(config.grpo.sample_images, encoder.tokens, encoder.channels))
    yield from _sampling("sample", captioner, config, features)
    yield from _update("update_features", captioner, config, sizes, features)
    rows, tokens = config.grpo.sample_images * config.grpo.group_size, config.grpo.tokens
    reference = LogprobCell(captioner, SPECIALS[1], config.grpo.temperature, config.grpo.top_k)
    ids = Tensor(_ids(sizes, rows, tokens))
    yield Phase("reference", rows, lambda: reference(features, ids).asnumpy())
    greedy = GreedyDecoder(captioner, SPECIALS, config.eval.tokens)
    yield Phase("greedy", config.eval.batch_images, lambda: greedy(features)[0].asnumpy())
    evaluation = config.eval
    beam = BeamDecoder(
        captioner, SPECIALS, evaluation.tokens, evaluation.beams, evaluation.length_penalty, evaluation.block_trigrams
    )
    yield Phase("beam", evaluation.batch_images, lambda: beam(features)[0].asnumpy())
    yield from _ce_step(captioner, config, sizes, features)


def _sampling(name: str, captioner: Captioner, config: Config, inputs: Tensor) -> Iterator[Phase]:
    grpo = config.grpo
    sampler = GroupSampler(captioner, SPECIALS, _allowed(captioner), grpo.temperature, grpo.top_k)
    shape = (grpo.sample_images, grpo.group_size, grpo.tokens)
    draws = Tensor(np.random.default_rng(0).random(shape, np.float32))
    yield Phase(name, shape[0] * shape[1], lambda: sampler(inputs, draws)[2].asnumpy())


def _update(name: str, captioner: Captioner, config: Config, sizes: Sizes, inputs: Tensor) -> Iterator[Phase]:
    """GRPO's update of B images x G completions, every token counted."""
    rows, tokens = config.grpo.update_images * config.grpo.group_size, config.grpo.tokens
    rng = np.random.default_rng(1)
    logprobs = rng.normal(-8, 1, (rows, tokens)).astype(np.float32)
    weights = np.full_like(logprobs, 1 / logprobs.size)
    advantages = rng.standard_normal(rows, np.float32)
    arrays = (inputs.asnumpy(), _ids(sizes, rows, tokens), weights, logprobs, logprobs, advantages)
    optimizer = build_optimizer(captioner.trained_parameters(), config.grpo.optimizer, RATES)
    loss = GRPOLossCell(captioner, SPECIALS[1], config)
    step = build_step(
        loss,
        optimizer,
        build_loss_scale(config.precision),
        config.grpo.optimizer.grad_clip,
        config.grpo.micro_batches,
        1,
        uncached,
    )
    yield Phase(name, rows, lambda: step(*arrays))


def _ce_step(captioner: Captioner, config: Config, sizes: Sizes, inputs: Tensor) -> Iterator[Phase]:
    """Cross-entropy of B images x G captions, every token counted, with dropout."""
    ce = config.ce
    rows = ce.batch_images * ce.captions_per_image
    loss = CELossCell(captioner, SPECIALS[1], _allowed(captioner), ce.label_smoothing)
    optimizer = build_optimizer(captioner.trained_parameters(), ce.optimizer, RATES)
    step = build_step(
        loss, optimizer, build_loss_scale(config.precision), ce.optimizer.grad_clip, ce.micro_batches, 1, uncached
    )
    rng = np.random.default_rng(2)
    rates = captioner.decoder.dropout_rates
    keep = [rng.random((rows, ce.tokens, config.decoder.width)) >= rate for rate in rates if max(rates) > 0]
    weights = np.full((rows, ce.tokens), 1 / (rows * ce.tokens), np.float32)
    arrays = (inputs.asnumpy(), _ids(sizes, rows, ce.tokens), weights, *keep)
    yield Phase("ce_step", rows, lambda: step(*arrays))


def uncached(name: str, cell: nn.Cell) -> nn.Cell:
    """In place of GraphCache.keep: every process compiles."""
    return cell


def _captioner(config: Config, sizes: Sizes, *, cached: bool) -> Captioner:
    allowed = np.ones(sizes.vocab, bool)
    allowed[list(SPECIALS)] = False
    return build_captioner(config, allowed, cached=cached)


def _allowed(captioner: Captioner) -> np.ndarray:
    return captioner.decoder.allowed_bias.asnumpy() == 0


def _ids(sizes: Sizes, rows: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(3).integers(len(SPECIALS), sizes.vocab, (rows, tokens), np.int32)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).standard_normal(shape, np.float32)
