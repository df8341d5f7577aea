"""What another cluster job has left in the environment: named, before MindSpore waits for it or computes by it."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from src.runtime.errors import InputError

# What msrun sets, or mpirun, or a cluster's shell, and MindSpore 2.9.0 reads; most of them at its import.
CLUSTER_VARIABLES = (
    *("MS_ROLE", "MS_WORKER_NUM", "MS_SERVER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID", "MS_TOPO_TIMEOUT"),
    *("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"),
    *("OMPI_COMMAND", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_SECONDS = 5  # for a scheduler to answer, or to be started


def check_cluster_variables() -> None:
    """Take the variables of a cluster for what they are: a process that msrun has started keeps them, all others not.

    Without MS_ROLE they are removed, and named on stderr. With it, a cluster that somebody has started by hand, or
    by an msrun that did not stay, is waited for some seconds.
    Errors: InputError naming them where no such cluster is there, or where MindSpore would not compute.
    """
    level = os.environ.get("MS_SIMULATION_LEVEL")
    if level:
        raise InputError(f"MS_SIMULATION_LEVEL={level}: MindSpore would compute nothing but zeros; unset it")
    found = [name for name in CLUSTER_VARIABLES if name in os.environ]
    role = os.environ.get("MS_ROLE")
    if not role:
        if found:
            print(f"environment: ignored {' '.join(found)}, left by another job", file=sys.stderr)
            for name in found:
                del os.environ[name]
        return
    if _is_below_msrun():
        return
    host, port = os.environ.get("MS_SCHED_HOST", ""), os.environ.get("MS_SCHED_PORT", "")
    remedy = f"unset them (unset {' '.join(found)}), or start all workers and their scheduler with msrun"
    values = ", ".join(f"{name}={os.environ[name]}" for name in found)
    if role not in ("MS_WORKER", "MS_SCHED"):
        raise InputError(f"{values}: this program has no such role; {remedy}")
    for name, value in (("MS_SCHED_PORT", port), ("MS_WORKER_NUM", os.environ.get("MS_WORKER_NUM", ""))):
        if not host or not (value.isascii() and value.isdecimal() and 0 < int(value[:9]) < 65536):
            raise InputError(f"{values}: without a usable MS_SCHED_HOST and {name} this is no cluster; {remedy}")
    other, missing = "MS_SCHED", f"no scheduler answers at {host}:{port}"
    if role == "MS_SCHED":
        other, missing = "MS_WORKER", "no worker of this scheduler runs here"
    if not _comes(lambda: _runs_here(other, port) or (role == "MS_WORKER" and _answers(host, int(port)))):
        raise InputError(f"{values} are set, but {missing}; {remedy}")
    print(f"environment: joining a cluster, as {values} say; if not, {remedy}", file=sys.stderr)


def _comes(condition: Callable[[], bool]) -> bool:
    """Whether it is met within seconds; a name that nobody resolves may take longer to fail."""
    met, end = threading.Event(), threading.Event()

    def wait() -> None:
        while not end.is_set():
            if condition():
                met.set()
                return
            end.wait(0.5)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return met.wait(_SECONDS)
    finally:
        end.set()


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), timeout=1).close()
    except (OSError, UnicodeError):
        return False
    return True


def _is_below_msrun() -> bool:
    process = os.getppid()
    with contextlib.suppress(OSError):
        while process > 0:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith((b"/msrun", b"mindspore.parallel.cluster.run")) for word in words):
                return True
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def _runs_here(role: str, port: str) -> bool:
    """Whether a process of this machine and user has that role at the scheduler's port; it may not listen yet."""
    wanted = {f"MS_ROLE={role}".encode(), f"MS_SCHED_PORT={port}".encode()}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(environment.read_bytes().split(b"\0")):
                return True
    return False
