"""The devices and nodes that a command runs on: its flags and its ports."""

import argparse
import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from src.runtime.errors import InputError

PORTS = 8  # from --master's on; each program takes another, because the previous one may still be closing
NODE_TIMEOUT = 240  # seconds; with the time to end the workers, both sides of a cut network end within 5 minutes


class Cluster(NamedTuple):
    """The devices of a program: `devices` on each of `nodes`. This is node `node_rank`; node 0 listens."""

    devices: int = 1
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None  # None: on one node, each program takes any free port
    node_timeout: float = NODE_TIMEOUT  # seconds without a sign of life from another node

    @property
    def size(self) -> int:
        """The number of workers on all nodes."""
        return self.devices * self.nodes


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose devices and nodes."""
    parser.add_argument("--devices", type=int, default=1, help="devices of this node (default 1)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes, each with as many devices (default 1)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this node, from 0")
    master = f"address of node 0 and the first of {PORTS} free ports; optional on one node, which chooses free ports"
    parser.add_argument("--master", metavar="ADDRESS:PORT", help=master)
    timeout = f"stop the run if another node has not answered for this long (default {NODE_TIMEOUT})"
    parser.add_argument("--node-timeout", type=int, default=NODE_TIMEOUT, metavar="SECONDS", help=timeout)


def read_cluster(arguments: argparse.Namespace) -> Cluster:
    """Build the cluster from the flags. Errors: InputError naming the flag."""
    for name in ("devices", "nodes", "node_timeout"):
        if (value := getattr(arguments, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least 1")
    nodes, rank, master = arguments.nodes, arguments.node_rank, arguments.master
    if not 0 <= rank < nodes:
        raise InputError(f"--node-rank {rank} must be one of 0 to {nodes - 1}")
    cluster = Cluster(arguments.devices, nodes, rank, node_timeout=float(arguments.node_timeout))
    if master is None:
        if nodes > 1:
            raise InputError(f"--nodes {nodes} needs --master ADDRESS:PORT, the same on every node")
        return cluster
    address, _, port = master.rpartition(":")
    if not address or not port.isdecimal() or not 1024 <= int(port) <= 65535 - PORTS:
        raise InputError(f"--master {master} must be ADDRESS:PORT, such as 10.0.0.1:8118")
    if nodes > 1 and (address.strip("[]") in ("localhost", "::1") or address.startswith("127.")):
        raise InputError(f"--master {master} must be an address of node 0 that the other nodes reach")
    return cluster._replace(address=address, port=int(port))


@contextlib.contextmanager
def held_port(cluster: Cluster, launch: int) -> Iterator[int]:
    """Yield the scheduler's port for the command's program number `launch`, from 0, and hold it on node 0 meanwhile.

    A free port is bound here without listening: the system gives it to no other process, but MindSpore's scheduler,
    which sets SO_REUSEADDR too, can listen there. Two runs with the same `--master` exclude each other by a socket
    name, which, like the port, covers all users of the machine and is free again when its process ends.
    Errors: InputError if the port of `--master` is taken, since msrun would only wait.
    """
    port = 0
    if cluster.port is not None:
        first = int(cluster.nodes > 1)  # src.runtime.node_watch has port 0 of several nodes
        port = cluster.port + first + launch % (PORTS - first)
    if cluster.node_rank > 0:
        yield port
        return
    with socket.socket() as held, socket.socket(socket.AF_UNIX) as name:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("", port))
            port = held.getsockname()[1]
            name.bind(f"\0captioner-port-{port}")
        except OSError as error:
            raise port_taken(port, error) from None
        yield port


def port_taken(port: int, error: OSError) -> InputError:
    """Return the error for a port of `--master` that cannot be used."""
    fix = "stop the run that uses it, or choose another"
    return InputError(f"--master: port {port} cannot be used ({error.strerror}); {fix}")
