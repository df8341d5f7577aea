"""Build the device zones of a stage, compile their graphs, and estimate their memory.

Letters: B images, G group size, M = B*G rows, T tokens, V vocabulary.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from mindspore import Parameter, nn

from src.config.schema import Config
from src.training import zones as cells
from src.training.optim import build_optimizer, learning_rates
from src.training.step import GradientSum, SummedUpdate, TrainStep, Update, build_loss_scale
from src.training.zones import Zone


def zones(config: Config, vocab: int) -> Iterator[Zone]:
    """Every zone of one worker: encoder, sampler, reference, loss with update, and the decoders of validation."""
    cached = not config.encoder.trainable
    policy = cells.synthetic_policy(config, vocab, cached=cached)
    if cached:
        yield cells.encoder_zone(config, policy, config.eval.batch_images)
    for zone in cells.decoder_zones(config, policy):
        yield from cells.parts_of(zone)
    if config.stage == "ce":
        loss = cells.ce_loss_zone(config, policy, config.ce.batch_images // config.ce.micro_batches)
    else:
        yield from cells.parts_of(cells.sampler_zone(config, policy))
        yield cells.reference_zone(config, policy)
        loss = cells.rl_loss_zone(config, policy, config.rl.update_images // config.rl.micro_batches)
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
_SIZES = {"Float64": 8, "Int64": 8, "Float16": 2, "BFloat16": 2, "Bool": 1, "Int8": 1, "UInt8": 1}  # bytes; others 4
_VIEWS = {"Reshape", "Depend", "TupleGetItem", "MakeTuple", "Load", "ExpandDims", "Squeeze", "UpdateState"}


def compile_graph(zone: Zone, folder: Path) -> dict[int, Node]:
    """The operators of a zone's optimised graph by number, in order. folder: MS_DEV_SAVE_GRAPHS_PATH."""
    before = set(folder.rglob("*_validate_*.ir"))
    try:
        zone.cell.compile(*zone.tensors())
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


def parameter_bytes(cell: nn.Cell) -> int:
    """Bytes of all parameters of a cell, including sums of gradients and moments."""
    return sum(map(_bytes, cell.get_parameters()))


def _bytes(parameter: Parameter) -> int:
    return prod(parameter.shape) * _SIZES.get(str(parameter.dtype), 4)


def held_bytes(config: Config, all_zones: Sequence[Zone], devices: int) -> int:
    """Bytes that a run holds all the time: the parameters of all zones together, each once, and beside them the
    reference's copy of what is trained, and what all devices sum up at once.
    """
    held = {id(parameter): parameter for zone in all_zones for parameter in zone.cell.get_parameters()}
    trained = next(zone.cell for zone in reversed(all_zones) if zone.name == "update").update.optimizer.parameters
    copies = (config.stage != "ce") + (devices > 1)
    return sum(map(_bytes, held.values())) + copies * sum(map(_bytes, trained))


def peak_bytes(graph: dict[int, Node]) -> int:
    """The largest size of all outputs that live at once, each from its operator to its last reader.

    A tensor lives as long as its views. Workspaces of kernels and fragmentation are not counted.
    """
    last = {number: number for number in graph}
    for number, node in reversed(graph.items()):  # a view extends the life of what it shows
        for read in node.reads:
            end = last[number] if node.operator in _VIEWS else number
            if read in last:
                last[read] = max(last[read], end)
    alive = peak = 0
    ends: dict[int, int] = {}
    for number, node in graph.items():
        size = 0 if node.operator in _VIEWS else sum(prod(shape) * _SIZES.get(kind, 4) for kind, shape in node.outputs)
        alive += size
        peak = max(peak, alive)
        ends[last[number]] = ends.get(last[number], 0) + size
        alive -= ends.pop(number, 0)
    return peak
