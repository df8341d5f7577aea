"""Time a call: the first one by itself (it compiles, and touches its memory first), a warm-up, then a median."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Work(NamedTuple):
    """The operations and bytes that a phase needs at least."""

    operations: float
    bytes: float

    def seconds(self, ceilings: dict[str, float]) -> float:
        """The floor: the longer of arithmetic and memory traffic at the machine's measured ceilings."""
        return max(self.operations / ceilings["matmul_gflops"], self.bytes / ceilings["bandwidth_gbs"]) * 1e-9


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Time `call`, which must not return before its work is done.

    seconds, cpu_seconds (of all cores): medians of the repeats; compile_s: how much longer the first call took.
    """
    times, cpu_times = [], []
    for _ in range(2 + repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        call()
        times.append(time.perf_counter() - started)
        cpu_times.append(time.process_time() - cpu_started)
    seconds = median(times[2:])
    return {"seconds": seconds, "cpu_seconds": median(cpu_times[2:]), "compile_s": max(0.0, times[0] - seconds)}
