"""The device zones of a stage as cells with inputs of the configured sizes, and the graphs compiled of them.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from src.config.schema import Config
from src.decoding.beam import BeamDecoder
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses.cells import CELossCell, GRPOLossCell, LogprobCell
from src.models.captioner.policy import Captioner, build_captioner
from src.training.optim import build_optimizer, learning_rates
from src.training.step import GradientSum, SummedUpdate, TrainStep, Update, WorkerSum, build_loss_scale
from src.training.zones import Encode

SPECIALS = (0, 1, 2)  # PAD, BOS, EOS


class Zone(NamedTuple):
    """A cell that a run compiles, with arrays of the shapes and types that it is called with."""

    name: str
    cell: nn.Cell
    inputs: tuple[np.ndarray, ...]


def zones(config: Config, vocab: int) -> Iterator[Zone]:
    """Every zone of one worker: encoder, sampler, reference, loss with update, and the decoders of validation."""
    allowed = np.ones(vocab, bool)
    allowed[[0, 1]] = False
    cached = not config.encoder.trainable
    captioner = build_captioner(config, allowed, cached=cached)
    evaluation = config.eval
    if cached:
        yield Zone("encoder", Encode(captioner.encoder), (_pixels(config, evaluation.batch_images),))
    inputs = _inputs(config, captioner, evaluation.batch_images)
    yield Zone("greedy", GreedyDecoder(captioner, SPECIALS, evaluation.tokens), (inputs,))
    if evaluation.beams > 1:
        penalties = (evaluation.length_penalty, evaluation.block_trigrams)
        beams = BeamDecoder(captioner, SPECIALS, evaluation.tokens, evaluation.beams, *penalties)
        yield Zone("beams", beams, (inputs,))
    if config.stage == "ce":
        yield from _ce(config, captioner, allowed)
    else:
        yield from _rl(config, captioner, allowed)


def _ce(config: Config, captioner: Captioner, allowed: np.ndarray) -> Iterator[Zone]:
    ce = config.ce
    images = ce.batch_images // ce.micro_batches
    shape = (images * ce.captions_per_image, ce.tokens)
    loss = CELossCell(captioner, SPECIALS[1], allowed, ce.label_smoothing)
    rates = captioner.decoder.dropout_rates
    keep = [_floats(*shape, config.decoder.width) >= rate for rate in rates if max(rates) > 0]
    weights = np.full(shape, 1 / (shape[0] * shape[1]), np.float32)
    arrays = (_inputs(config, captioner, images), _ids(shape, len(allowed)), weights, *keep)
    yield from _update(config, captioner, loss, arrays)


def _rl(config: Config, captioner: Captioner, allowed: np.ndarray) -> Iterator[Zone]:
    grpo = config.grpo
    greedy = config.advantage.baseline == "greedy"
    inputs = _inputs(config, captioner, grpo.sample_images)
    sampler = GroupSampler(captioner, SPECIALS, allowed, grpo.temperature, grpo.top_k, greedy)
    yield Zone("sampler", sampler, (inputs, _floats(grpo.sample_images, grpo.group_size, grpo.tokens)))
    ids = _ids((grpo.sample_images * grpo.group_size, grpo.tokens), len(allowed))
    yield Zone("reference", LogprobCell(captioner, SPECIALS[1], grpo.temperature, grpo.top_k), (inputs, ids))
    images = grpo.update_images // grpo.micro_batches
    shape = (images * grpo.group_size, grpo.tokens)
    weights = np.full(shape, 1 / (shape[0] * shape[1]), np.float32)
    logprobs = _floats(*shape) - 1 - np.log(len(allowed), dtype=np.float32)  # those of a fresh policy, or near
    arrays = (_inputs(config, captioner, images), _ids(shape, len(allowed)), weights, logprobs, logprobs)
    yield from _update(config, captioner, GRPOLossCell(captioner, SPECIALS[1], config), (*arrays, _floats(shape[0])))


def _update(config: Config, captioner: Captioner, loss: nn.Cell, arrays: tuple[np.ndarray, ...]) -> Iterator[Zone]:
    section = config.ce if config.stage == "ce" else config.grpo
    settings = section.optimizer
    optimizer = build_optimizer(captioner.trained_parameters(), settings, learning_rates(settings, 1000))
    update = Update(optimizer, build_loss_scale(config.precision), settings.grad_clip, WorkerSum(1))
    if section.micro_batches == 1:
        yield Zone("update", TrainStep(loss, update), arrays)
        return
    sums = GradientSum(loss, update)
    yield Zone("gradient", sums, arrays)
    values = _floats(1 + len(loss.STATS))
    yield Zone("update", SummedUpdate(sums, update), (values,))


def _pixels(config: Config, images: int) -> np.ndarray:
    return _floats(images, 3, config.data.image_size, config.data.image_size)


def _inputs(config: Config, captioner: Captioner, images: int) -> np.ndarray:
    if not captioner.cached:
        return _pixels(config, images)
    encoder = captioner.encoder
    return _floats(images, encoder.tokens, encoder.channels).astype(np.float16)


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def _ids(shape: tuple[int, int], vocab: int) -> np.ndarray:
    return np.random.default_rng(1).integers(len(SPECIALS), vocab, shape, np.int32)


@dataclass(frozen=True)
class Node:
    """One operator of a compiled graph: its name, which nodes it reads, and the types and shapes of its outputs."""

    operator: str
    reads: tuple[int, ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]


_NODE = re.compile(r"^\s+%(\d+)\(.*?\) = (?:PrimFunc_)?(\w+|%\d+)\((.*)$")
_TENSOR = re.compile(r"Tensor\[(\w+)\]>?, \(([-\d, ]*)\)")


def compile_graph(zone: Zone, folder: Path) -> dict[int, Node]:
    """The operators of a zone's graph by number, in their order, after MindSpore has optimised it.

    folder: where MindSpore writes graphs (MS_DEV_SAVE_GRAPHS_PATH).
    """
    before = set(folder.rglob("*_validate_*.ir"))
    zone.cell.compile(*map(Tensor, zone.inputs))
    new = set(folder.rglob("*_validate_*.ir")) - before
    return read_graph(max(new, key=lambda file: file.stat().st_mtime).read_text())


def read_graph(text: str) -> dict[int, Node]:
    """Parse MindSpore's text form of a graph: a line for each operator, the next one with its types."""
    nodes = {}
    lines = text.splitlines()
    for line, types in pairwise(lines):
        match = _NODE.match(line)
        if match:
            number, operator, rest = match.groups()
            arguments = rest.partition(" cnode_attrs")[0]
            outputs = types.rpartition("->")[2]
            nodes[int(number)] = Node(
                operator,
                tuple(map(int, re.findall(r"%(\d+)", arguments))),
                tuple((kind, _shape(dims)) for kind, dims in _TENSOR.findall(outputs)),
            )
    return nodes


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(dim) for dim in dims.replace(" ", "").split(",") if dim)
