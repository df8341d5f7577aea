"""Timing of one call: the first apart (it compiles, and is the first to use its memory), then a warm-up, then a median;
and the work it stands for."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Timing(NamedTuple):
    """seconds: median of the repeats; compile_s: what the first call took longer."""

    seconds: float
    compile_s: float


class Work(NamedTuple):
    """Operations and bytes that a phase cannot do without."""

    operations: float
    bytes: float

    def seconds(self, ceilings: dict[str, float]) -> float:
        """The floor: whichever of arithmetic and memory takes longer at the machine's measured ceilings."""
        return max(self.operations / ceilings["matmul_gflops"], self.bytes / ceilings["bandwidth_gbs"]) * 1e-9


def timed(call: Callable[[], object], repeats: int) -> Timing:
    """Time `call`, which must return only when its work is done."""
    times = []
    for _ in range(2 + repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    seconds = median(times[2:])
    return Timing(seconds, max(0.0, times[0] - seconds))
