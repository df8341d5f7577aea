"""The cells that a run compiles, with inputs of the configured sizes: what benchmark and readiness check look at.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, mutable, nn

from src.config.schema import Config
from src.data.tokenizer import TokenIds
from src.decoding.beam import BeamDecoder
from src.decoding.distribution import Sampled
from src.decoding.generation import Generation, Start, Step
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses.cross_entropy import CELossCell
from src.losses.grpo import GRPOLossCell, LogprobCell
from src.models.build import build_policy
from src.models.policy import Policy
from src.models.vision_language.architecture import language_sizes

_PAD, _BOS, _EOS = range(3)
_PROMPT = 12  # tokens


class Zone(NamedTuple):
    """A cell that a run compiles, with arrays of the shapes and types that it is called with, perhaps nested."""

    name: str
    cell: nn.Cell
    inputs: tuple[Any, ...]

    def tensors(self) -> tuple[Any, ...]:
        """The inputs on the device."""
        return tuple(map(_on_device, self.inputs))


def _on_device(value: Any) -> Any:
    if isinstance(value, tuple):
        return mutable(tuple(map(_on_device, value))) if value else ()
    return Tensor(value)


def parts_of(zone: Zone) -> Iterator[Zone]:
    """The graphs that a decoding method is compiled into: one, or the part before the first step and a step."""
    generation = zone.cell
    if not isinstance(generation, Generation) or generation.policy.unrolled:
        yield zone
        return
    inputs, *draws = zone.inputs
    carried = tuple(value.asnumpy() for value in generation.begin(len(inputs), *map(Tensor, draws)))
    rows = len(carried[0])
    yield Zone(f"{zone.name}_start", Start(generation), zone.inputs)
    token, position = np.full(rows, generation.bos_id, np.int32), np.int32(0)
    prefix = generation.policy.empty_prefix(len(inputs))
    yield Zone(f"{zone.name}_step", Step(generation, rows), (token, position, prefix, (), carried))


class Encode(nn.Cell):
    """Only the encoder."""

    def __init__(self, encoder: nn.Cell) -> None:
        super().__init__()
        self.encoder = encoder

    def construct(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels)


def synthetic_policy(config: Config, vocab: int, *, cached: bool, ends: bool = True, load: bool = False) -> Policy:
    """A policy with random weights. ends: whether the EOS may be sampled; else every caption has T tokens.

    A pretrained language model has its own vocabulary, a prompt of _PROMPT tokens around the image, and its weights if
    `load` is set.
    """
    prompt: tuple[int, ...] = ()
    if config.policy.is_pretrained:
        vocab, prompt = language_sizes(Path(config.policy.path or "")).vocab, (_EOS + 1,) * (_PROMPT // 2)
    allowed = np.ones(vocab, bool)
    allowed[[_PAD, _BOS]] = False
    allowed[_EOS] = ends
    ids = TokenIds(_PAD, _BOS, (_EOS,), allowed, prompt, prompt)
    policy = build_policy(config, ids, cached=cached, load=load)
    if config.policy.is_pretrained and not load:
        rng = np.random.default_rng(0)
        for parameter in policy.get_parameters():
            if parameter.ndim > 1:
                values = rng.standard_normal(parameter.shape, np.float32) * parameter.shape[0] ** -0.5
                parameter.set_data(Tensor(values, parameter.dtype))
    return policy


def encoder_zone(config: Config, policy: Policy, images: int) -> Zone:
    """Pixels of B images to features."""
    return Zone("encoder", Encode(policy.encoder), (_pixels(config, images),))


def decoder_zones(config: Config, policy: Policy) -> Iterator[Zone]:
    """What evaluation decodes with: greedy, and beams where they are asked for."""
    settings = config.eval
    inputs = _inputs(config, policy, settings.batch_images)
    yield Zone("greedy", GreedyDecoder(policy, settings.tokens), (inputs,))
    if settings.beams > 1:
        beams = BeamDecoder(policy, settings.tokens, settings.beams, settings.length_penalty, settings.block_trigrams)
        yield Zone("beams", beams, (inputs,))


def sampler_zone(config: Config, policy: Policy) -> Zone:
    """B images and uniforms to groups of completions."""
    rl, greedy = config.rl, config.advantage.baseline == "greedy"
    cell = GroupSampler(policy, rl.tokens, Sampled.of(rl), greedy=greedy)
    inputs = _inputs(config, policy, rl.sample_images)
    return Zone("sampler", cell, (inputs, _floats(rl.sample_images, rl.group_size, rl.tokens)))


def reference_zone(config: Config, policy: Policy) -> Zone:
    """The log-probs of the groups that were sampled."""
    rl, images = config.rl, config.reference_images
    ids = _ids(policy, images * rl.group_size, rl.tokens)
    return Zone("reference", LogprobCell(policy, Sampled.of(rl)), (_inputs(config, policy, images), ids))


def rl_loss_zone(config: Config, policy: Policy, images: int) -> Zone:
    """GRPO's loss of B images x G completions, every token counted."""
    shape = (images * config.rl.group_size, config.rl.tokens)
    logprobs = _floats(*shape) - 1 - np.log(len(policy.token_ids.allowed), dtype=np.float32)  # near a fresh policy's
    rows = (_ids(policy, *shape), _weights(*shape), logprobs, logprobs, _floats(shape[0]))
    return Zone("loss", GRPOLossCell(policy, config), (_inputs(config, policy, images), *rows))


def ce_loss_zone(config: Config, policy: Policy, images: int) -> Zone:
    """Cross-entropy of B images x K captions, every token counted, with dropout."""
    shape = (images * config.ce.captions_per_image, config.ce.tokens)
    keep = [_floats(*shape, policy.width) >= rate for rate in policy.dropout_sites]
    arrays = (_inputs(config, policy, images), _ids(policy, *shape), _weights(*shape), *keep)
    return Zone("loss", CELossCell(policy, config.ce.label_smoothing), arrays)


def _pixels(config: Config, images: int) -> np.ndarray:
    return _floats(images, 3, config.data.image_size, config.data.image_size)


def _inputs(config: Config, policy: Policy, images: int) -> np.ndarray:
    if not policy.cached:
        return _pixels(config, images)
    return _floats(images, policy.encoder.tokens, policy.encoder.channels).astype(np.float16)


def _weights(*shape: int) -> np.ndarray:
    return np.full(shape, 1 / np.prod(shape), np.float32)


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def _ids(policy: Policy, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(_EOS + 1, len(policy.token_ids.allowed), shape, np.int32)
