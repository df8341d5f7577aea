"""The launchers of all nodes watch each other: who has come, finished, failed, ended, or no longer answers.

Node 0 listens on the port of `--master`, the others connect to it. Each sends one line of JSON, all that the others
need to know of it, every few seconds and whenever that changes. Launchers are watched, not the progress of their
workers: a worker may be busy for as long as it likes. Whoever does not know the job is ignored, a message is at most
4 KiB of JSON with checked types, and no clock is compared with another node's.
"""

import hashlib
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.cluster import Cluster, port_taken
from src.errors import InputError, RunStopped, Terminated, TimeLimit

CONNECT = 600  # seconds that nodes wait for each other at the start
_MESSAGE = 4096  # bytes
_TEXT = 600  # characters of a failure's line, at most 6 bytes each
_STRANGERS = 64  # connections that have not said which node they are
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


class _Peer:
    """What is known of another node."""

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self.heard = 0.0  # time.monotonic() of its last message
        self.at = ""  # the same for people
        self.finished = -1  # programs of the command; -1: it has not come
        self.all_finished = -1  # programs that all nodes have finished, as node 0 says
        self.status: int | None = None  # of its failure
        self.message = ""
        self.silent = False
        self.gone = False


class _Connection:
    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(1)
        self.socket = connected
        self.buffer = b""
        self.node: int | None = None  # which node has said that it is at the other end


class Watch:
    """This node's side of the watch. Errors: InputError where node 0 cannot listen."""

    def __init__(self, cluster: Cluster, job: str) -> None:
        assert cluster.port is not None
        self.cluster = cluster
        self.job = job
        self.finished = 0  # programs of the command that this node has finished
        self._status: int | None = None
        self._message = ""
        self._refused = ""  # why node 0 does not take this node
        self._beat = min(10.0, cluster.node_timeout / 5)  # seconds between messages
        self._address = (cluster.address.strip("[]"), cluster.port)
        self._peers = {rank: _Peer() for rank in (range(1, cluster.nodes) if cluster.node_rank == 0 else [0])}
        self._connections: list[_Connection] = []
        self._sending = threading.Lock()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        if cluster.node_rank == 0:
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            try:
                self._listener = socket.create_server(("", cluster.port), family=family)  # sets SO_REUSEADDR
            except OSError as error:
                raise port_taken(cluster.port, error) from None
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, stopped: Callable[[], bool]) -> Trouble | None:
        """Return when all nodes have finished as many programs as this one, when one is in trouble, or when `stopped`.

        Errors: InputError where node 0 refuses this node, RunStopped where a node does not come in time.
        """
        start = time.monotonic()
        told: set[str] = set()
        while self._all_finished() < self.finished and not stopped():
            trouble = self.trouble()
            if trouble is not None:
                return trouble
            if self._refused == "node":
                raise InputError(
                    f"--node-rank {self.cluster.node_rank}: node {self.cluster.node_rank} of this command has joined "
                    "already; give each node its own, and start the command once on each"
                )
            waited = time.monotonic() - start
            missing = [f"node {rank}" for rank, peer in self._peers.items() if peer.finished < 0]
            text = f"waiting for {', '.join(missing)}: start the same command on every node"
            if self._refused == "job":
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
        for rank, peer in self._peers.items():
            worker = f"worker {rank * self.cluster.devices} on node {rank}"
            if peer.finished > self.finished:
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
        self.finished += 1
        self._send_all()

    def tell_failure(self, status: int, message: str) -> None:
        """Tell the others that this node ends with `status` and `message`, which may be of another node."""
        own = f"node {self.cluster.node_rank}: "
        self._status, self._message = status, message if message.startswith("node ") else own + message
        self._send_all()

    def close(self) -> None:
        """End the watch, as the end of the process does."""
        self._closed = True
        self._thread.join()

    def _all_finished(self) -> int:
        if self.cluster.node_rank > 0:
            return self._peers[0].all_finished
        return min(self.finished, *(peer.finished for peer in self._peers.values()))

    def _run(self) -> None:
        pause = min(1.0, self._beat / 4)
        looked = sent = time.monotonic()
        while not self._closed:
            if self.cluster.node_rank > 0 and not self._connections and not self._peers[0].gone:
                self._connect()
            ready = self._selector.select(pause)
            now = time.monotonic()
            for peer in self._peers.values():
                if now - looked > pause + self._beat:  # this process was suspended, perhaps all nodes were
                    peer.heard += now - looked
            looked = now
            for key, _ in ready:
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            for peer in self._peers.values():  # after all that had come in was read
                peer.silent = peer.connection is not None and now - peer.heard > self.cluster.node_timeout
            if now - sent > self._beat:
                sent = now
                self._send_all()
        for connection in list(self._connections):
            self._drop(connection)
        if self.cluster.node_rank == 0:
            self._listener.close()

    def _connect(self) -> None:
        try:
            self._add(_Connection(socket.create_connection(self._address, timeout=5)))
        except OSError:
            time.sleep(0.5)
        else:
            self._send_all()

    def _accept(self) -> None:
        try:
            self._add(_Connection(self._listener.accept()[0]))
        except OSError:
            return
        strangers = [connection for connection in self._connections if connection.node is None]
        if len(strangers) > _STRANGERS:
            self._drop(strangers[0])

    def _add(self, connection: "_Connection") -> None:
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _drop(self, connection: "_Connection") -> None:
        self._selector.unregister(connection.socket)
        self._connections.remove(connection)
        connection.socket.close()
        if connection.node is not None:
            peer = self._peers[connection.node]
            peer.at, peer.gone = time.strftime("%H:%M:%S"), True
        elif self.cluster.node_rank > 0:
            time.sleep(0.5)  # before the next attempt: nothing else is to be done

    def _read(self, connection: "_Connection") -> None:
        try:
            data = connection.socket.recv(_MESSAGE)
        except OSError:
            data = b""
        *lines, connection.buffer = (connection.buffer + data).split(b"\n")
        taken = all(self._take(connection, line) for line in lines)
        if not data or not taken or len(connection.buffer) > _MESSAGE:
            self._drop(connection)

    def _take(self, connection: "_Connection", line: bytes) -> bool:
        """Note what a message says; False where it is none, or not from a node of this job."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(message, dict):
            return False
        if self.cluster.node_rank > 0 and connection.node is None and message.get("refused") in ("job", "node"):
            self._refused = message["refused"]
            return False
        if message.get("job") != self.job:
            self._send(connection, {"refused": "job"})
            return False
        kinds = {"node": int, "finished": int, "all": int, "status": int | None, "message": str}
        node = message.get("node")
        if not all(isinstance(message.get(key), kind) for key, kind in kinds.items()) or node not in self._peers:
            return False
        peer = self._peers[node]
        if peer.connection not in (None, connection):
            self._send(connection, {"refused": "node"})
            return False
        before = self._all_finished()
        self._refused = ""
        peer.connection, connection.node = connection, node
        peer.heard, peer.at = time.monotonic(), time.strftime("%H:%M:%S")
        peer.finished, peer.all_finished, peer.status = message["finished"], message["all"], message["status"]
        peer.message = "".join(letter if letter.isprintable() else " " for letter in message["message"])
        if self.cluster.node_rank == 0 and before != self._all_finished():
            self._send_all()
        return True

    def _send_all(self) -> None:
        state = {"job": self.job, "node": self.cluster.node_rank, "finished": self.finished}
        state |= {"all": self._all_finished(), "status": self._status, "message": self._message[:_TEXT]}
        for connection in list(self._connections):
            if connection.node is not None or self.cluster.node_rank > 0:
                self._send(connection, state)

    def _send(self, connection: "_Connection", message: dict[str, Any]) -> None:
        try:
            with self._sending:
                connection.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # reading tells
            pass


def job_of(cluster: Cluster, program: Sequence[str], logs: Path) -> str:
    """What all nodes of one command have in common, and no other command has: its name in messages."""
    parts = [list(program), str(logs.resolve()), cluster.nodes, cluster.devices, cluster.port]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
