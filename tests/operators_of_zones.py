"""Run by test_readiness.py: FOLDER [key=value ...]. Prints how often each operator occurs in every zone's graph, built
for Ascend, as JSON."""

import collections
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FOLDER, *SETTINGS = sys.argv[1:]
os.environ |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": FOLDER, "MS_DEV_DUMP_IR_PASSES": "validate"}

from src.runtime.environment import prepare_environment  # noqa: E402

prepare_environment(convolutions=True)

from tiny import TINY  # noqa: E402

from src.config.load import load_config  # noqa: E402
from src.models import kernels  # noqa: E402
from src.readiness.compiled_graphs import compile_graph, zones  # noqa: E402
from src.runtime.device import setup_device  # noqa: E402

config = load_config("configs/demo/grpo.yaml", [*TINY, *SETTINGS])
setup_device(config)
with kernels.built_for("Ascend"):
    built = list(zones(config, 50))
counts = {}
for zone in built:
    graph = compile_graph(zone, Path(FOLDER))
    counts[zone.name] = collections.Counter(node.operator for node in graph.values())
print(json.dumps(counts))
