"""Run by test_readiness.py: cells that Ascend cannot run. Prints a line of violations for each."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FOLDER = tempfile.mkdtemp(prefix="graphs-")
os.environ |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": FOLDER, "MS_DEV_DUMP_IR_PASSES": "validate"}

from src.runtime.environment import prepare_environment  # noqa: E402

prepare_environment(convolutions=False)

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from src.readiness.compiled_graphs import Zone, compile_graph  # noqa: E402
from src.readiness.operators import violations  # noqa: E402


class Random(nn.Cell):
    def construct(self, x):
        return ops.Bernoulli(seed=1)(x, x)


class Dynamic(nn.Cell):
    def construct(self, x):
        return ops.NonZero()(x)


class Wide(nn.Cell):
    def construct(self, x):
        return ops.argmax(x, -1)


class Condition(nn.Cell):
    def construct(self, x):
        if ops.reduce_sum(x) > 0:
            return ops.exp(x)
        return x


ms.set_context(mode=ms.GRAPH_MODE)
for cell in (Random(), Dynamic(), Wide(), Condition()):
    zone = Zone("planted", cell, (np.full((2, 3), 0.5, np.float32),))
    print("; ".join(violations(compile_graph(zone, Path(FOLDER)))))
