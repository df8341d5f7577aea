"""Build the device zones of a stage with inputs of the configured sizes, and compile their graphs.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from mindspore import Tensor

from src.config.schema import Config
from src.training.optim import build_optimizer, learning_rates
from src.training.step import GradientSum, SummedUpdate, TrainStep, Update, build_loss_scale
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


def zones(config: Config, vocab: int) -> Iterator[Zone]:
    """Every zone of one worker: encoder, sampler, reference, loss with update, and the decoders of validation."""
    cached = not config.encoder.trainable
    policy = synthetic_policy(config, vocab, cached=cached)
    if cached:
        yield encoder_zone(config, policy, config.eval.batch_images)
    yield from decoder_zones(config, policy)
    if config.stage == "ce":
        loss = ce_loss_zone(config, policy, config.ce.batch_images // config.ce.micro_batches)
    else:
        yield sampler_zone(config, policy)
        yield reference_zone(config, policy)
        loss = rl_loss_zone(config, policy, config.rl.update_images // config.rl.micro_batches)
    section = config.ce if config.stage == "ce" else config.rl
    settings = section.optimizer
    optimizer = build_optimizer(policy.trained_parameters(), settings, learning_rates(settings, 1000))
    update = Update(optimizer, build_loss_scale(config.precision), settings.grad_clip)
    if section.micro_batches == 1:
        yield Zone("update", TrainStep(loss.cell, update), loss.inputs)
        return
    sums = GradientSum(loss.cell, update)
    yield Zone("gradient", sums, loss.inputs)
    values = np.random.default_rng(0).random(1 + len(loss.cell.STATS), np.float32)
    yield Zone("update", SummedUpdate(sums, update), (values,))


@dataclass(frozen=True)
class Node:
    """One operator of a compiled graph: its name, the nodes it reads, and the types and shapes of its outputs."""

    operator: str
    reads: tuple[int, ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]


_NODE = re.compile(r"^\s+%(\d+)\(.*?\) = (?:PrimFunc_)?(\w+|%\d+)\((.*)$")
_TENSOR = re.compile(r"Tensor\[(\w+)\]>?, \(([-\d, ]*)\)")


def compile_graph(zone: Zone, folder: Path) -> dict[int, Node]:
    """The operators of a zone's optimised graph by number, in order. folder: MS_DEV_SAVE_GRAPHS_PATH."""
    before = set(folder.rglob("*_validate_*.ir"))
    try:
        zone.cell.compile(*map(Tensor, zone.inputs))
    except (RuntimeError, TypeError) as error:  # operators that only Ascend has; the graph was already written
        if not re.search(r"[Uu]nsupported op|[Uu]nsupported operator", str(error)):
            raise
    new = set(folder.rglob("*_validate_*.ir")) - before
    return read_graph(max(new, key=lambda file: file.stat().st_mtime).read_text())


def read_graph(text: str) -> dict[int, Node]:
    """Parse MindSpore's text form of a graph: a line for each operator, the next one with its types."""
    nodes = {}
    for line, types in pairwise(text.splitlines()):
        if match := _NODE.match(line):
            number, operator, rest = match.groups()
            reads = re.findall(r"%(\d+)", rest.partition(" cnode_attrs")[0])
            outputs = _TENSOR.findall(types.rpartition("->")[2])
            shapes = ((kind, tuple(map(int, re.findall(r"-?\d+", dims)))) for kind, dims in outputs)
            nodes[int(number)] = Node(operator, tuple(map(int, reads)), tuple(shapes))
    return nodes
