"""One of several nodes on this machine: python node.py RANK NODES PORT NODE_TIMEOUT LOGS ACTION...

Launches this file as a worker once for each action, such as `sleep:0=5,1=0` (seconds that each worker is busy) or
`refuse:1` (worker 1 finds bad input, the others are busy). In place of msrun stands `msrun` below, which imports no
MindSpore, and starts no scheduler: what is tested is src/runtime/launch.py.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import src.runtime.launch
import src.runtime.node_workers
from src.runtime.cluster import Cluster
from src.runtime.environment import run_program
from src.runtime.errors import InputError


def work(action):
    kind, _, argument = action.partition(":")
    rank = os.environ["RANK_ID"]
    Path(os.environ["CAPTIONER_WORKER_FOLDER"], f"busy_{rank}").touch()
    if kind == "sleep":
        time.sleep(float(dict(part.split("=") for part in argument.split(","))[rank]))
    elif argument == rank:
        time.sleep(1)  # while the others begin
        raise InputError("no such file")
    else:
        time.sleep(100)


def msrun(options, program):
    """Start the workers of this node, and kill those that are left when one fails."""
    count, node = int(options["local_worker_num"]), int(options["node_rank"])
    workers = []
    for rank in range(node * count, (node + 1) * count):
        environment = os.environ | {"RANK_ID": str(rank), "MS_ROLE": "MS_WORKER"}
        with open(Path(options["log_dir"], f"worker_{rank}.log"), "w") as log:
            command = [sys.executable, *program]
            workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        for worker in workers:
            if worker.poll():
                print(f"Worker process {worker.pid} exit with exception")
                for other in workers:
                    if other.poll() is None:
                        os.killpg(other.pid, signal.SIGKILL)
    sys.exit(any(worker.returncode for worker in workers))


def main(rank, nodes, port, node_timeout, logs, actions):
    src.runtime.node_workers._FAILING = 2
    command = src.runtime.launch.msrun_command
    src.runtime.launch.msrun_command = lambda *arguments: [sys.executable, __file__, "msrun", *command(*arguments)[3:]]
    for action in actions:
        cluster = Cluster(1, nodes, rank, "127.0.0.1", port, node_timeout)
        src.runtime.launch.launch([__file__, "work", action], cluster, logs)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        run_program(lambda: work(sys.argv[2]))
    elif sys.argv[1] == "msrun":
        options = [word for word in sys.argv[2:] if word.startswith("--")]
        msrun(dict(option[2:].split("=") for option in options), sys.argv[2 + len(options) :])
    else:
        rank, nodes, port, node_timeout, logs, *actions = sys.argv[1:]
        run_program(lambda: main(int(rank), int(nodes), int(port), float(node_timeout), Path(logs), actions))
