"""The connections between the launchers of several nodes, and the state that each knows of the others.

Node 0 listens on the port of `--master`, the others connect to it. Each sends its whole state as one line of JSON,
every few seconds and whenever it changes. Messages are not trusted: a sender that does not know the job is ignored, a
message is at most 4 KiB of JSON with checked types, and no clock is compared with another node's.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from typing import Any

from src.runtime.cluster import Cluster, port_taken

_MESSAGE = 4096  # bytes
_TEXT = 600  # characters of a failure's line, at most 6 bytes each
_STRANGERS = 64  # connections that have not named their node
_TYPES = {"node": int, "finished": int, "all": int, "status": int | None, "message": str}  # beside "job"


class _Connection:
    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(1)
        self.socket = connected
        self.buffer = b""
        self.node: int | None = None  # the node that the other end says it is


class Peer:
    """The known state of another node."""

    def __init__(self) -> None:
        self.connection: _Connection | None = None  # its first and only one
        self.heard = 0.0  # time.monotonic() of its last message
        self.at = ""  # the same as a time of day
        self.finished = -1  # programs of the command; -1: it has not joined
        self.all_finished = -1  # programs that all nodes have finished, according to node 0
        self.status: int | None = None  # of its failure
        self.message = ""
        self.silent = False  # for longer than cluster.node_timeout
        self.gone = False  # its connection has ended


class Link:
    """This node's side. Errors: InputError if node 0 cannot listen."""

    def __init__(self, cluster: Cluster, job: str) -> None:
        assert cluster.port is not None
        self.cluster = cluster
        self.finished = 0  # programs of the command that this node has finished
        self.status: int | None = None  # of its failure
        self.message = ""
        self.peers = {rank: Peer() for rank in (range(1, cluster.nodes) if cluster.node_rank == 0 else [0])}
        self.refused = ""  # why node 0 rejects this node: it has another "job", or that "node" already
        self._job = job
        self._beat = min(10.0, cluster.node_timeout / 5)  # seconds between messages
        self._address = (cluster.address.strip("[]"), cluster.port)
        self._connections: list[_Connection] = []
        self._sending = threading.Lock()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None  # of node 0
        if cluster.node_rank == 0:
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            try:
                self._listener = socket.create_server(("", cluster.port), family=family)  # sets SO_REUSEADDR
            except OSError as error:
                raise port_taken(cluster.port, error) from None
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def all_finished(self) -> int:
        """Return how many programs of the command all nodes have finished; -1 until all have joined."""
        if self._listener is None:
            return self.peers[0].all_finished
        return min(self.finished, *(peer.finished for peer in self.peers.values()))

    def send(self) -> None:
        """Send this node's state to the others."""
        state = {"job": self._job, "node": self.cluster.node_rank, "finished": self.finished}
        state |= {"all": self.all_finished(), "status": self.status, "message": self.message[:_TEXT]}
        for connection in list(self._connections):
            if connection.node is not None or self._listener is None:
                self._say(connection, state)

    def close(self) -> None:
        """End the link, as the end of the process does."""
        self._closed = True
        self._thread.join()

    def _run(self) -> None:
        pause = min(1.0, self._beat / 4)
        looked = sent = time.monotonic()
        while not self._closed:
            if self._listener is None and not self._connections and not self.peers[0].gone:
                try:
                    self._add(socket.create_connection(self._address, timeout=5))
                    self.send()
                except (OSError, UnicodeError):
                    time.sleep(0.5)
            ready = self._selector.select(pause)
            now = time.monotonic()
            for peer in self.peers.values():
                if now - looked > pause + self._beat:  # this process was suspended, perhaps all nodes were
                    peer.heard += now - looked
            looked = now
            for key, _ in ready:
                if key.data is not None:
                    self._read(key.data)
                    continue
                listener: Any = key.fileobj
                with contextlib.suppress(OSError):
                    self._add(listener.accept()[0])
                strangers = [connection for connection in self._connections if connection.node is None]
                if len(strangers) > _STRANGERS:
                    self._drop(strangers[0])
            for peer in self.peers.values():  # only after reading everything that had arrived
                peer.silent = peer.connection is not None and now - peer.heard > self.cluster.node_timeout
            if now - sent > self._beat:
                sent = now
                self.send()
        for connection in list(self._connections):
            self._drop(connection)
        if self._listener is not None:
            self._listener.close()

    def _add(self, connected: socket.socket) -> None:
        connection = _Connection(connected)
        self._connections.append(connection)
        self._selector.register(connected, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        if connection not in self._connections:  # dropped as a stranger while it was ready to be read
            return
        self._selector.unregister(connection.socket)
        self._connections.remove(connection)
        connection.socket.close()
        if connection.node is not None:
            peer = self.peers[connection.node]
            peer.at, peer.gone = time.strftime("%H:%M:%S"), True
        elif self._listener is None:
            time.sleep(0.5)  # before the next attempt

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_MESSAGE)
        except OSError:
            data = b""
        *lines, connection.buffer = (connection.buffer + data).split(b"\n")
        accepted = all(self._take(connection, line) for line in lines)
        if not data or not accepted or len(connection.buffer) > _MESSAGE:
            self._drop(connection)

    def _take(self, connection: _Connection, line: bytes) -> bool:
        """Note the state in a message; False if it is not valid or not from a node of this job."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(message, dict):
            return False
        refused = message.get("refused")
        if self._listener is None and connection.node is None and refused in ("job", "node"):
            self.refused = refused
            return False
        if message.get("job") != self._job:
            self._say(connection, {"refused": "job"})
            return False
        node = message.get("node")
        if not all(isinstance(message.get(key), kind) for key, kind in _TYPES.items()) or node not in self.peers:
            return False
        peer = self.peers[node]
        if peer.connection not in (None, connection):
            self._say(connection, {"refused": "node"})
            return False
        before = self.all_finished()
        self.refused = ""
        peer.connection, connection.node = connection, node
        peer.heard, peer.at = time.monotonic(), time.strftime("%H:%M:%S")
        peer.message = "".join(letter if letter.isprintable() else " " for letter in message["message"])
        peer.finished, peer.all_finished, peer.status = message["finished"], message["all"], message["status"]
        if self._listener is not None and before != self.all_finished():
            self.send()
        return True

    def _say(self, connection: _Connection, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), self._sending:  # reading reports the broken connection
            connection.socket.sendall(json.dumps(message).encode() + b"\n")
