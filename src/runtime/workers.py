"""The workers of a run, one process for each device: their shares of every batch, and their communication.

They communicate only by sums of float32 arrays, the collective that MindSpore has on every device. It also gathers rows
and broadcasts parameters: the other workers add zeros, which is exact for floats and for integers below 2^24.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from src.runtime.device import DeviceSettings, setup_device
from src.runtime.environment import JOB
from src.runtime.errors import RunStopped


class Workers:
    """This process is number `rank` of `size`; without msrun, it is the only one."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.is_first = rank == 0  # the one that writes files and prints
        self._sum: Callable[[Any], Any] | None = None

    def multiple(self, size: int) -> int:
        """Round `size` up to a multiple of the workers."""
        return -(-size // self.size) * self.size

    def share(self, batch: np.ndarray) -> np.ndarray:
        """Return this worker's rows of a whole batch, whose first axis `size` divides."""
        return np.split(batch, self.size)[self.rank]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Sum an array over workers, float32."""
        if self.size == 1:
            return array
        from mindspore import Tensor

        if self._sum is None:
            self._sum = _sum_cell()
        return self._sum(Tensor(np.ascontiguousarray(array, np.float32))).asnumpy()

    def gather(self, arrays: Sequence[np.ndarray], batches: int) -> list[np.ndarray]:
        """Gather the rows of all workers, each of which holds its shares of `batches` batches, in the order of batches.

        All arrays are sent at once. Their first axes may differ if each is a multiple of `batches`.
        """
        if self.size == 1:
            return list(arrays)
        flat = [array.reshape(batches, -1).astype(np.float32) for array in arrays]
        every = np.zeros((batches, self.size, sum(part.shape[1] for part in flat)), np.float32)
        every[:, self.rank] = np.concatenate(flat, 1)
        parts = np.split(self.sum(every), np.cumsum([part.shape[1] for part in flat])[:-1], 2)
        return [part.reshape(-1, *array.shape[1:]).astype(array.dtype) for part, array in zip(parts, arrays)]

    def broadcast(self, parameters: Sequence) -> None:
        """Give all workers the first one's values of MindSpore parameters."""
        if self.size == 1:
            return
        from mindspore import Tensor

        values = [parameter.asnumpy() for parameter in parameters]
        flat = np.concatenate([np.zeros(1, np.float32), *[value.reshape(-1) for value in values]])
        # Adding minus zero changes no bit; zero would change minus zero, and so digests of weights.
        flat = self.sum(flat if self.is_first else np.full_like(flat, -0.0))
        ends = 1 + np.cumsum([value.size for value in values])
        for parameter, value, part in zip(parameters, values, np.split(flat[1:], ends[:-1] - 1)):
            parameter.set_data(Tensor(part.reshape(value.shape).astype(value.dtype)))

    def wait(self) -> None:
        """Return when all workers have called this."""
        self.sum(np.zeros(1, np.float32))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any worker: the same answer on all."""
        return bool(self.sum(np.array([flag], np.float32))[0] > 0)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the body on the first worker, then on the others, which find its files."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def join_workers(config: DeviceSettings) -> Workers:
    """Connect to the other workers if msrun started this process; returns when all are connected.

    msrun's scheduler runs the same program: it ends here, when all workers have ended.
    """
    if "MS_ROLE" not in os.environ:
        return Workers()
    from mindspore.communication import get_group_size, get_rank, init

    if setup_device(config) == "CPU":
        # Seconds that a collective waits for the last worker: 30 by default, 1800 with HCCL (HCCL_EXEC_TIMEOUT).
        os.environ.setdefault("MS_NODE_TIMEOUT", "1800")
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it waits in C++ for the others
    init()
    signal.signal(signal.SIGTERM, handler)
    workers = Workers(get_rank(), get_group_size())
    check_job(workers)  # at once: HCCL connects here, and waits at most HCCL_CONNECT_TIMEOUT, 120 s
    return workers


def check_job(workers: Workers) -> None:
    """Return when all workers have called this. Errors: RunStopped if some belong to another run."""
    own = int(os.environ.get(JOB, "0")[:6], 16)  # below 2^24: exact in float32
    (jobs,) = workers.gather([np.array([own])], 1)
    if (jobs != own).any():
        scheduler = f"{os.environ['MS_SCHED_HOST']}:{os.environ['MS_SCHED_PORT']}"
        fix = "give each run its own --master, and start the same command on all nodes of a run"
        raise RunStopped(f"workers of two runs connected to the scheduler {scheduler}; {fix}")


def _sum_cell() -> Callable[[Any], Any]:
    from mindspore import Tensor, nn, ops

    class Sum(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.all_reduce = ops.AllReduce()

        def construct(self, x: Tensor) -> Tensor:
            return self.all_reduce(x)

    return Sum()
