"""The launchers of all nodes watch each other: who has come, finished, failed, ended, or no longer answers.

Launchers are watched, and whether their workers exist, but not the progress of workers: one may be busy, slow or
stopped by a debugger for as long as it likes.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from src.runtime.cluster import Cluster
from src.runtime.errors import InputError, RunStopped, Terminated, TimeLimit
from src.runtime.node_link import Link

CONNECT = 600  # seconds that nodes wait for each other at the start
_RESUMES = "what was saved is kept, the same command resumes"


class Trouble(NamedTuple):
    """Why this node cannot go on: another one has failed with `status`, or is lost (status 3)."""

    status: int
    message: str
    announced: bool  # by the node that failed, with its own line

    @property
    def stops_all(self) -> bool:
        """Whether the workers of all nodes save and end, as for SIGTERM, or at the time limit."""
        return self.announced and self.status in (Terminated.exit_status, TimeLimit.exit_status)


class Watch:
    """This node's side of the watch of one command. Errors: InputError where node 0 cannot listen."""

    def __init__(self, cluster: Cluster, program: Sequence[str], logs: Path) -> None:
        """program, logs: the first of the command, which together with the cluster tell one job from others."""
        self.cluster = cluster
        parts = [list(program), str(logs.resolve()), cluster.nodes, cluster.devices, cluster.port]
        self._job = _digest(parts)
        self.link = Link(cluster, self._job)

    def job(self, program: Sequence[str]) -> str:
        """What the workers of the program that comes now have in common on all nodes, and with no others."""
        return _digest([self._job, self.link.finished, list(program)])

    def wait(self, stopped: Callable[[], bool]) -> Trouble | None:
        """Return when all nodes have finished as many programs as this one, when one is in trouble, or when `stopped`.

        Errors: InputError where node 0 refuses this node, RunStopped where a node does not come in time.
        """
        start = time.monotonic()
        told: set[str] = set()
        while self.link.all_finished() < self.link.finished and not stopped():
            trouble = self.trouble()
            if trouble is not None:
                return trouble
            rank = self.cluster.node_rank
            if self.link.refused == "node":
                raise InputError(
                    f"--node-rank {rank}: node {rank} of this command has joined already; give each node its own, and "
                    "start the command once on each"
                )
            waited = time.monotonic() - start
            missing = [f"node {rank}" for rank, peer in self.link.peers.items() if peer.finished < 0]
            text = f"waiting for {', '.join(missing)}: start the same command on every node"
            if self.link.refused == "job":
                text = f"--master: {self.cluster.address}:{self.cluster.port} belongs to another command, or has other "
                text += "settings, another --nodes or --devices, or its outputs under another path"
            if missing and waited > CONNECT:
                raise RunStopped(f"{text} (waited {CONNECT} s)")
            if missing and waited > 5 and text not in told:
                told.add(text)
                print(text, file=sys.stderr, flush=True)
            time.sleep(0.05)
        return None

    def trouble(self, wait: float = 0) -> Trouble | None:
        """Why another node will not finish the program that this node is at; `wait` seconds for it to say so."""
        end = time.monotonic() + wait
        while (trouble := self._trouble()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return trouble

    def _trouble(self) -> Trouble | None:
        for rank, peer in self.link.peers.items():
            worker = f"worker {rank * self.cluster.devices} on node {rank}"
            if peer.finished > self.link.finished:
                continue
            if peer.status is not None:
                return Trouble(peer.status, peer.message, True)
            if peer.gone:
                line = f"{worker} is gone since {peer.at}: the command there was killed or has ended early"
                return Trouble(RunStopped.exit_status, f"{line}; {_RESUMES}", False)
            if peer.silent:
                line = f"{worker} has not answered since {peer.at}: that node or the network between has failed"
                limit = f"--node-timeout {self.cluster.node_timeout:g} s"
                return Trouble(RunStopped.exit_status, f"{line} ({limit}); {_RESUMES}", False)
        return None

    def tell_finished(self) -> None:
        """Tell the others that this node has finished a program."""
        self.link.finished += 1
        self.link.send()

    def tell_failure(self, status: int, message: str) -> None:
        """Tell the others that this node ends with `status` and `message`, which may be of another node."""
        own = f"node {self.cluster.node_rank}: "
        self.link.message = message if message.startswith("node ") else own + message
        self.link.status = status
        self.link.send()


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
