"""Variables that another cluster job left in the environment: reported before MindSpore waits for that cluster."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from src.runtime.errors import InputError

# Set by msrun, mpirun or a cluster's shell; MindSpore 2.9.0 reads them, mostly when it is imported.
CLUSTER_VARIABLES = (
    *("MS_ROLE", "MS_WORKER_NUM", "MS_SERVER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID", "MS_TOPO_TIMEOUT"),
    *("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"),
    *("OMPI_COMMAND", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)
_SECONDS = 5  # for a scheduler to answer, or to be started


def check_cluster_variables() -> None:
    """Keep the variables of a cluster in a process that msrun started, and deal with them in any other.

    Without MS_ROLE they are removed and named on stderr. With it, a cluster started by hand, or by an msrun that did
    not stay, gets some seconds to appear.
    Errors: InputError naming them if no such cluster appears, or if MindSpore would not compute.
    """
    level = os.environ.get("MS_SIMULATION_LEVEL")
    if level:
        raise InputError(f"MS_SIMULATION_LEVEL={level}: MindSpore would return only zeros; unset it")
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
    fix = f"unset them (unset {' '.join(found)}), or start all workers and their scheduler with msrun"
    values = ", ".join(f"{name}={os.environ[name]}" for name in found)
    ports = {name: os.environ.get(name, "") for name in ("MS_SCHED_PORT", "MS_WORKER_NUM")}
    usable = {"MS_ROLE": role in ("MS_WORKER", "MS_SCHED"), "MS_SCHED_HOST": bool(host)}
    usable |= {name: text.isascii() and text.isdecimal() and 0 < int(text[:9]) < 65536 for name, text in ports.items()}
    for name, good in usable.items():
        if not good:
            raise InputError(f"{values}: {name} is missing or unusable; {fix}")
    is_worker = role == "MS_WORKER"
    other = "MS_SCHED" if is_worker else "MS_WORKER"
    if not _comes(lambda: _runs_here(other, port) or (is_worker and _answers(host, int(port)))):
        here = "no worker of this scheduler runs on this machine"
        missing = f"no scheduler answers at {host}:{port}" if is_worker else here
        raise InputError(f"{values} are set, but {missing}; {fix}")
    print(f"environment: joining a cluster, as {values} say; if not, {fix}", file=sys.stderr)


def _comes(condition: Callable[[], bool]) -> bool:
    """Return whether a condition is met within seconds; polled in a thread, because resolving a name may block."""
    met = threading.Event()
    end = time.monotonic() + _SECONDS

    def poll() -> None:
        while not met.is_set() and time.monotonic() < end:
            met.set() if condition() else time.sleep(0.5)

    threading.Thread(target=poll, daemon=True).start()
    return met.wait(_SECONDS)


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError, UnicodeError):
        socket.create_connection((host.strip("[]"), port), timeout=1).close()
        return True
    return False


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
    """Return whether a process of this machine and user has that role at the scheduler's port, listening or not."""
    wanted = {f"MS_ROLE={role}".encode(), f"MS_SCHED_PORT={port}".encode()}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(environment.read_bytes().split(b"\0")):
                return True
    return False
