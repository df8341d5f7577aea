"""The workers of this node, which msrun starts: watches them until they end, and reads their outcome."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from src.runtime.cluster import Cluster
from src.runtime.errors import RunStopped, Terminated
from src.runtime.node_watch import CONNECT, NodeWatch, Trouble

_GRACE = 120  # seconds that workers have to save and end after SIGTERM
_FAILING = 10  # seconds that workers have to end by themselves after another node has failed
_CLOSING = 10  # seconds that msrun's scheduler, which other nodes may need, has to end after the workers of its node
# MindSpore's log, and the last line of a failing worker, which is shown with its rank at the end.
_NOT_SHOWN = re.compile(r"\[(INFO|WARNING)\] |error: ")
_DIED = re.compile(r"Worker process (\d+) exit with exception")  # msrun's line on the first dead worker that it finds


def msrun_command(cluster: Cluster, port: int, logs: Path) -> list[str]:
    nodes = f"--worker_num={cluster.size} --local_worker_num={cluster.devices} --node_rank={cluster.node_rank}"
    master = f"--master_addr={cluster.address} --master_port={port} --cluster_time_out={CONNECT} --join=True"
    command = [sys.executable, "-m", "mindspore.parallel.cluster.run"]
    return [*command, *nodes.split(), *master.split(), f"--log_dir={logs}"]


def watch_workers(
    msrun: subprocess.Popen, logs: Path, own: Sequence[str], terminated: list[float], watch: NodeWatch | None
) -> tuple[Trouble | None, bool]:
    """Until msrun ends, show what the first of all workers prints, pass SIGTERM on, and leave no process behind.

    own: the workers of this node and, on node 0, the scheduler. Returns the trouble of another node, and whether the
    workers were killed because of it.
    """
    names = [name for name in own if name != "scheduler"]
    shown = 0
    passed_on = killed = False
    trouble = gone_at = None
    deadline = math.inf
    pids: dict[str, int] = {}  # the folder of the logs may be lost
    while True:
        running = msrun.poll() is None
        if names[0] == "worker_0":
            shown = _show(logs / "worker_0.log", shown)
        if not running:
            return trouble, killed
        for name in own:
            if name not in pids and "pid" in (report := _read(logs, name)):
                pids[name] = report["pid"]
        workers = [pids[name] for name in names if name in pids]
        now = time.monotonic()
        if watch is not None and trouble is None and (trouble := watch.trouble()):
            if trouble.stops_all:
                terminated.append(now)
            else:  # no SIGTERM: the workers wait for each other in C++
                deadline = now + _FAILING
        if terminated and not passed_on and len(workers) == len(names):
            _signal(workers, signal.SIGTERM)
            passed_on = True
        if now > min(deadline, terminated[0] + _GRACE if terminated else math.inf):
            killed = killed or now > deadline
            _signal(workers, signal.SIGKILL)  # each in a session of its own
            os.killpg(msrun.pid, signal.SIGKILL)
        if len(workers) == len(names) and not any(map(is_running, workers)):
            gone_at = gone_at or now  # msrun waits for its scheduler, which may not notice
            if now - gone_at >= (0 if watch is None else _CLOSING) and "scheduler" in pids:
                _signal([pids["scheduler"]], signal.SIGKILL)
        time.sleep(0.2)


def _show(log: Path, start: int) -> int:
    """Print the whole lines of a log from byte `start` on, and return where they end."""
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
    """Read a worker's report: its pid and, if it ended by itself, its status, message and time."""
    try:
        return json.loads((logs / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):  # a zombie was killed by msrun, which waits for its scheduler before it looks
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def outcome(msrun_status: int, log: Path, logs: Path, names: Sequence[str], terminated: bool) -> tuple[int, str]:
    """Return the exit status and message of the worker that failed first, or 0. Errors: Terminated, RunStopped."""
    reports = {name: _read(logs, name) for name in names}
    failed = [name for name in names if reports[name].get("status", 0) != 0]
    if failed:
        first = min(failed, key=lambda name: reports[name]["time"])
        return reports[first]["status"], f"{first.replace('_', ' ')}: {reports[first]['message']} (logs: {logs})"
    silent = [name for name in names if "status" not in reports[name]]
    if not silent:
        return 0, ""
    if terminated:
        raise Terminated("ended by SIGTERM or Ctrl-C before the workers could save; run the same command to resume")
    died = _DIED.search(log.read_text(errors="replace")) if log.exists() else None  # msrun kills the others silently
    lost = next((name for name in silent if died and reports[name].get("pid") == int(died[1])), silent[0])
    raise RunStopped(
        f"{lost.replace('_', ' ')} ended without a message (killed, or out of memory?), or msrun did (status "
        f"{msrun_status}); its log is {logs / lost}.log; run the same command to resume"
    )
