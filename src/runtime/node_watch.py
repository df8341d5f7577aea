"""The launchers of all nodes watch each other: which has joined, finished, failed, ended, or stopped answering.

The watch covers launchers and the existence of their workers, not the progress of workers: one may be busy, slow or
stopped by a debugger for any time.
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


class Trouble(NamedTuple):
    """Why this node cannot continue: another one has failed with `status`, or is lost (status 3)."""

    status: int
    message: str
    announced: bool  # by the node that failed, with its own line

    @property
    def stops_all(self) -> bool:
        """Whether the workers of all nodes save and end, as for SIGTERM or at the time limit."""
        return self.announced and self.status in (Terminated.exit_status, TimeLimit.exit_status)


class NodeWatch:
    """This node's side of the watch of one command. Errors: InputError if node 0 cannot listen."""

    def __init__(self, cluster: Cluster, program: Sequence[str], logs: Path) -> None:
        """program, logs: the first of the command; with the cluster, they distinguish this job from others."""
        self.cluster = cluster
        self._job = _digest([list(program), str(logs.resolve()), cluster.nodes, cluster.devices, cluster.port])
        self.link = Link(cluster, self._job)

    def job(self, program: Sequence[str]) -> str:
        """Return what the workers of the next program share on all nodes, and with no others."""
        return _digest([self._job, self.link.finished, list(program)])

    def wait(self, stopped: Callable[[], bool]) -> Trouble | None:
        """Return when all nodes have finished as many programs as this one, when one is in trouble, or when `stopped`.

        Errors: InputError if node 0 refuses this node, RunStopped if a node does not join in time.
        """
        start = time.monotonic()
        printed: set[str] = set()
        rank, address = self.cluster.node_rank, f"{self.cluster.address}:{self.cluster.port}"
        while self.link.all_finished() < self.link.finished and not stopped():
            trouble = self.trouble()
            if trouble is not None:
                return trouble
            if self.link.refused == "node":
                fix = "give each node its own rank, and start the command once on each"
                raise InputError(f"--node-rank {rank}: node {rank} of this command has joined already; {fix}")
            waited = time.monotonic() - start
            missing = [f"node {other}" for other, peer in self.link.peers.items() if peer.finished < 0]
            text = f"waiting for {', '.join(missing)}: start the same command on every node"
            if self.link.refused == "job":
                text = f"--master: {address} belongs to another command, or to other --nodes, --devices or outputs"
            if missing and waited > CONNECT:
                raise RunStopped(f"{text} (waited {CONNECT} s)")
            if missing and waited > 5 and text not in printed:
                printed.add(text)
                print(text, file=sys.stderr, flush=True)
            time.sleep(0.05)
        return None

    def trouble(self, wait: float = 0) -> Trouble | None:
        """Return why another node will not finish this node's program; `wait` seconds for it to announce that."""
        end = time.monotonic() + wait
        while (trouble := self._trouble()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return trouble

    def _trouble(self) -> Trouble | None:
        for rank, peer in self.link.peers.items():
            if peer.finished > self.link.finished:
                continue
            if peer.status is not None:
                return Trouble(peer.status, peer.message, True)
            reason = ""
            if peer.gone:
                reason = f"is gone since {peer.at}: the command there was killed or has ended early"
            elif peer.silent:
                limit = f"--node-timeout {self.cluster.node_timeout:g} s"
                reason = f"has not answered since {peer.at}: that node or the network between has failed ({limit})"
            if reason:
                line = f"worker {rank * self.cluster.devices} on node {rank} {reason}; what was saved is kept"
                return Trouble(RunStopped.exit_status, f"{line}; run the same command to resume", False)
        return None

    def tell_finished(self) -> None:
        """Tell the others that this node has finished a program."""
        self.link.finished += 1
        self.link.send()

    def tell_failure(self, status: int, message: str) -> None:
        """Tell the others that this node ends with `status` and `message`, which may come from another node."""
        own = f"node {self.cluster.node_rank}: "
        self.link.message = message if message.startswith("node ") else own + message
        self.link.status = status
        self.link.send()


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
