"""Compile the zones of a configuration, and count what they take and what a device cannot do."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.config.schema import Config
from src.models import kernels
from src.readiness.compare import record_zone
from src.readiness.compiled_graphs import compile_graph, held_bytes, parameter_bytes, peak_bytes, zones
from src.readiness.operators import STRUCTURE, violations


class Measured(NamedTuple):
    """What a run holds all the time, in bytes; and by zone: numbers of operators, bytes of parameters and the most
    bytes at once, float64 [3]; the operators; and one line for each kind of problem.
    """

    held: float
    numbers: dict[str, np.ndarray]
    operators: dict[str, set[str]]
    problems: dict[str, list[str]]


def measure(config: Config, vocab: int, devices: int, form: str, folder: Path, *, record: bool) -> Measured:
    """Compile all zones in the forms of the device `form`. record: also run them, for src/readiness/compare.py."""
    numbers, operators, problems = {}, {}, {}
    with kernels.built_for(form):
        all_zones = list(zones(config, vocab))
    for zone in all_zones:
        graph = compile_graph(zone, folder)
        found = [node.operator for node in graph.values() if node.operator not in STRUCTURE]
        numbers[zone.name] = np.array([len(found), parameter_bytes(zone.cell), peak_bytes(graph)], np.float64)
        operators[zone.name], problems[zone.name] = set(found), violations(graph)
        if record:
            record_zone(zone, folder)
    return Measured(held_bytes(config, all_zones, devices), numbers, operators, problems)


def combined(results: Sequence[Measured], weights: Sequence[float]) -> Measured:
    """The sum of results with weights; operators and problems of all of them."""
    names = list(results[0].numbers)
    return Measured(
        float(np.dot(weights, [result.held for result in results])),
        {name: np.dot(weights, [result.numbers[name] for result in results]) for name in names},
        {name: set().union(*(result.operators[name] for result in results)) for name in names},
        {name: list(dict.fromkeys(line for one in results for line in one.problems[name])) for name in names},
    )
