"""Starts a program of the project on one device or on many, waits for it, and ends as it ended.

Several devices: msrun starts one worker for each, and a scheduler on the first node, which connects them. What the
first worker prints is shown here; the logs of all are in a folder. A worker leaves its process id and, at its end, its
exit status and message there (src/environment.py), since msrun tells neither.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from src.environment import WORKER_FOLDER, end_with_parent, on_signals
from src.errors import InputError, RunStopped, Terminated

_PORTS = 8  # each program takes the next port: that of the one before may still be closing
_GRACE = 120  # seconds that workers have to save and end after SIGTERM
_CONNECT = 600  # seconds that workers wait for each other at the start
_CLOSING = 10  # seconds that msrun's scheduler has to end after all workers of its node
# MindSpore's own log; and the line that a failing worker ends with, which is shown with its rank at the end.
_NOT_SHOWN = re.compile(r"\[(INFO|WARNING)\] |error: ")
_DIED = re.compile(r"Worker process (\d+) exit with exception")  # as msrun says of the first that it finds dead
_launches = 0


class Cluster(NamedTuple):
    """Which devices a program runs on: `devices` of each of `nodes`; this is node `node_rank`; the first listens."""

    devices: int = 1
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 8118

    @property
    def size(self) -> int:
        """Workers of all nodes."""
        return self.devices * self.nodes


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that scripts take."""
    parser.add_argument("--devices", type=int, default=1, help="devices of this node (default 1)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes, each with as many devices (default 1)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this node, from 0")
    parser.add_argument("--master", default="127.0.0.1:8118", help="address of node 0 and the first of 8 free ports")


def read_cluster(arguments: argparse.Namespace) -> Cluster:
    """What the flags say. Errors: InputError naming the flag."""
    address, separator, port = arguments.master.rpartition(":")
    if not separator or not address or not port.isdecimal() or not 1024 <= int(port) <= 65535 - _PORTS:
        raise InputError(f"--master {arguments.master} must be ADDRESS:PORT, such as 10.0.0.1:8118")
    for flag, value in (("--devices", arguments.devices), ("--nodes", arguments.nodes)):
        if value < 1:
            raise InputError(f"{flag} {value} must be at least 1")
    if not 0 <= arguments.node_rank < arguments.nodes:
        raise InputError(f"--node-rank {arguments.node_rank} must be one of 0 to {arguments.nodes - 1}")
    if arguments.nodes > 1 and address in ("127.0.0.1", "localhost"):
        raise InputError(f"--master {arguments.master} must be an address of node 0 that the other nodes reach")
    return Cluster(arguments.devices, arguments.nodes, arguments.node_rank, address, int(port))


def launch(program: Sequence[str], cluster: Cluster, logs: Path) -> None:
    """Run `program` (a Python file and its arguments); ends this process with its exit status where that is not 0.

    logs: the folder for the logs of several workers. SIGTERM is handed on, and Ctrl-C as SIGTERM; the workers decide
    together where to stop. Raises Terminated where they did not, so that no other program follows.
    """
    terminated: list[float] = []
    status = _run_one(program, terminated) if cluster.size == 1 else _run_workers(program, cluster, logs, terminated)
    if terminated and status <= 0:  # it had done all, or nothing yet
        raise Terminated("ended by SIGTERM or Ctrl-C; the same command goes on")
    if status != 0:
        sys.exit(status if status > 0 else 128 - status)


def _run_one(program: Sequence[str], terminated: list[float]) -> int:
    child = subprocess.Popen([sys.executable, *program], preexec_fn=end_with_parent)

    def terminate() -> None:
        terminated.append(time.monotonic())
        child.send_signal(signal.SIGTERM)

    with _on_signals(terminate):
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has it too
            return child.wait()


def _run_workers(program: Sequence[str], cluster: Cluster, logs: Path, terminated: list[float]) -> int:
    ranks = range(cluster.node_rank * cluster.devices, (cluster.node_rank + 1) * cluster.devices)
    names = [f"worker_{rank}" for rank in ranks]
    port = _next_port(cluster)
    msrun_log = f"msrun_{cluster.node_rank}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for name in (*names, "scheduler"):
            (logs / f"{name}.json").unlink(missing_ok=True)
            (logs / f"{name}.log").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write the logs of the workers in {logs}: {error}; choose another output_root"
        ) from None
    with (
        open(logs / msrun_log, "wb") as output,
        _on_signals(lambda: terminated.append(time.monotonic())),
    ):
        msrun = subprocess.Popen(
            [*_msrun(cluster, port, logs), *program],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {WORKER_FOLDER: str(logs), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            start_new_session=True,  # Ctrl-C comes here alone
            preexec_fn=end_with_parent,
        )
        try:
            _watch(msrun, logs, names, terminated)
        except KeyboardInterrupt:
            msrun.send_signal(signal.SIGINT)  # kills the workers
            msrun.wait()
            raise
    return _outcome(msrun.returncode, msrun_log, logs, names, bool(terminated))


def _next_port(cluster: Cluster) -> int:
    """Where the scheduler of the next program listens. Errors: InputError if it is taken: msrun would only wait."""
    global _launches
    port = cluster.port + _launches % _PORTS
    _launches += 1
    if cluster.node_rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise InputError(
                    f"--master: port {port} cannot be used ({error.strerror}); end the run that has it, or give another"
                ) from None
    return port


def _msrun(cluster: Cluster, port: int, logs: Path) -> list[str]:
    options = {
        "worker_num": cluster.size,
        "local_worker_num": cluster.devices,
        "node_rank": cluster.node_rank,
        "master_addr": cluster.address,
        "master_port": port,
        "cluster_time_out": _CONNECT,
        "log_dir": logs,
        "join": True,
    }
    return [sys.executable, "-m", "mindspore.parallel.cluster.run", *(f"--{k}={v}" for k, v in options.items())]


def _watch(msrun: subprocess.Popen, logs: Path, names: Sequence[str], terminated: Sequence[float]) -> None:
    """Until msrun ends: show what the first worker of all prints, hand SIGTERM on, leave nothing hanging."""
    shown = 0
    handed_on = False
    gone_at = None
    pids: dict[str, int] = {}  # kept here: the folder of the logs may be lost
    while True:
        running = msrun.poll() is None
        if names[0] == "worker_0":
            shown = _show(logs / "worker_0.log", shown)
        if not running:
            return
        for name in (*names, "scheduler"):
            if name not in pids and "pid" in _read(logs, name):
                pids[name] = _read(logs, name)["pid"]
        workers = [pids[name] for name in names if name in pids]
        now = time.monotonic()
        if terminated and not handed_on and len(workers) == len(names):
            _signal(workers, signal.SIGTERM)
            handed_on = True
        if terminated and now - terminated[0] > _GRACE:
            _signal(workers, signal.SIGKILL)  # each in a session of its own
            os.killpg(msrun.pid, signal.SIGKILL)
        if len(workers) == len(names) and not any(map(_runs, workers)):
            gone_at = gone_at or now  # msrun waits for its scheduler, which may wait for workers that were killed
            if now - gone_at > _CLOSING and "scheduler" in pids:
                _signal([pids["scheduler"]], signal.SIGKILL)
        time.sleep(0.2)


def _show(log: Path, start: int) -> int:
    """Print the whole lines of a log from byte `start` on; returns where they end."""
    if not log.exists():
        return start
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read()
    end = text.rfind(b"\n") + 1
    for line in text[:end].decode("utf-8", "replace").split("\n")[:-1]:
        if not _NOT_SHOWN.match(line):
            print(line)
    sys.stdout.flush()
    return start + end


def _read(logs: Path, name: str) -> dict:
    """What a worker has left: its pid, and status, message and time once it has ended by itself."""
    try:
        return json.loads((logs / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # killed by msrun, which waits for its scheduler before it looks


def _outcome(msrun_status: int, msrun_log: str, logs: Path, names: Sequence[str], terminated: bool) -> int:
    """The exit status of the worker that failed first, whose message is printed; or 0."""
    reports = {name: _read(logs, name) for name in names}
    failed = [name for name in names if reports[name].get("status", 0) != 0]
    if failed:
        first = min(failed, key=lambda name: reports[name]["time"])
        print(f"{first.replace('_', ' ')}: {reports[first]['message']} (logs: {logs})", file=sys.stderr)
        return reports[first]["status"]
    if all(report.get("status") == 0 for report in reports.values()):
        return 0
    if terminated:
        raise Terminated("ended by SIGTERM or Ctrl-C before the workers could save; the same command goes on")
    log = logs / msrun_log
    died = _DIED.search(log.read_text(errors="replace")) if log.exists() else None
    silent = [name for name in names if "status" not in reports[name]]  # msrun kills the others without a word
    lost = next((name for name in silent if died and reports[name].get("pid") == int(died.group(1))), silent[0])
    raise RunStopped(
        f"{lost.replace('_', ' ')} ended without a message (killed, or out of memory?), or msrun did (status "
        f"{msrun_status}); its log is {logs / lost}.log; the same command goes on"
    )


@contextlib.contextmanager
def _on_signals(action: Callable[[], object]) -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    on_signals(action)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
