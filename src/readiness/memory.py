"""Estimate the device memory of a zone: its parameters, and the outputs that live at once while its graph runs."""

from math import prod

from mindspore import nn

from src.readiness.graphs import Node

_SIZES = {"Float64": 8, "Int64": 8, "Float16": 2, "BFloat16": 2, "Bool": 1, "Int8": 1, "UInt8": 1}  # bytes; others 4
_VIEWS = {"Reshape", "Depend", "TupleGetItem", "MakeTuple", "Load", "ExpandDims", "Squeeze", "UpdateState"}


def parameter_bytes(cell: nn.Cell) -> int:
    """Bytes of all parameters of a cell, including sums of gradients and moments."""
    return sum(prod(parameter.shape) * _SIZES.get(str(parameter.dtype), 4) for parameter in cell.get_parameters())


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
