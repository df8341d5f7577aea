"""Which devices and nodes a command runs on: its flags, and the ports that it takes."""

import argparse
import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import NamedTuple

from src.runtime.errors import InputError

PORTS = 8  # from --master's on; a program takes another than the one before, which may still be closing
NODE_TIMEOUT = 240  # seconds; with the time to end the workers, both sides of a cut network end within 5 minutes


class Cluster(NamedTuple):
    """Which devices a program runs on: `devices` of each of `nodes`; this is node `node_rank`; the first listens."""

    devices: int = 1
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None  # None: on one node, each program takes any free port
    node_timeout: float = NODE_TIMEOUT  # seconds without a sign of life from another node

    @property
    def size(self) -> int:
        """Workers of all nodes."""
        return self.devices * self.nodes


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that scripts take."""
    parser.add_argument("--devices", type=int, default=1, help="devices of this node (default 1)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes, each with as many devices (default 1)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this node, from 0")
    parser.add_argument(
        "--master",
        metavar="ADDRESS:PORT",
        help=f"address of node 0 and the first of {PORTS} free ports; not needed on one node, which takes free ones",
    )
    parser.add_argument(
        "--node-timeout",
        type=int,
        default=NODE_TIMEOUT,
        metavar="SECONDS",
        help=f"end the run when another node has not answered for this long (default {NODE_TIMEOUT})",
    )


def read_cluster(arguments: argparse.Namespace) -> Cluster:
    """What the flags say. Errors: InputError naming the flag."""
    for flag, value in (
        ("--devices", arguments.devices),
        ("--nodes", arguments.nodes),
        ("--node-timeout", arguments.node_timeout),
    ):
        if value < 1:
            raise InputError(f"{flag} {value} must be at least 1")
    if not 0 <= arguments.node_rank < arguments.nodes:
        raise InputError(f"--node-rank {arguments.node_rank} must be one of 0 to {arguments.nodes - 1}")
    cluster = Cluster(
        arguments.devices, arguments.nodes, arguments.node_rank, node_timeout=float(arguments.node_timeout)
    )
    if arguments.master is None:
        if arguments.nodes > 1:
            raise InputError(f"--nodes {arguments.nodes} needs --master ADDRESS:PORT, the same on every node")
        return cluster
    address, separator, port = arguments.master.rpartition(":")
    if not separator or not address or not port.isdecimal() or not 1024 <= int(port) <= 65535 - PORTS:
        raise InputError(f"--master {arguments.master} must be ADDRESS:PORT, such as 10.0.0.1:8118")
    if arguments.nodes > 1 and _is_loopback(address):
        raise InputError(f"--master {arguments.master} must be an address of node 0 that the other nodes reach")
    return cluster._replace(address=address, port=int(port))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


@contextlib.contextmanager
def held_port(cluster: Cluster, launch: int) -> Iterator[int]:
    """The port of the scheduler of the command's program number `launch`, from 0, held on node 0 during the body.

    A free port stays bound here without listening: the system gives it to nobody else, but MindSpore's scheduler,
    which sets SO_REUSEADDR too, can listen there. Two runs with the same `--master` exclude each other by a socket
    name, which like the port is one for all users of the machine, and free again when its process ends.
    Errors: InputError where the port of `--master` is taken: msrun would only wait.
    """
    if cluster.port is None:
        port = 0
    elif cluster.nodes > 1:  # the first is src.runtime.node_watch's
        port = cluster.port + 1 + launch % (PORTS - 1)
    else:
        port = cluster.port + launch % PORTS
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
    """What to say where a port of `--master` cannot be used."""
    return InputError(
        f"--master: port {port} cannot be used ({error.strerror}); end the run that has it, or give another"
    )
