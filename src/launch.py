"""Starts a program of the project on one device or on many, waits for it, and ends as it ended.

Several devices: msrun starts one worker for each, and a scheduler on the first node, which connects them. What the
first worker prints is shown here; the logs of all are in a folder. A worker leaves its process id and, at its end, its
exit status and message there (src/environment.py), since msrun tells neither. The launchers of several nodes watch
each other (src/watch.py): where one is lost or fails, the others end too.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from src.cluster import Cluster, held_port
from src.environment import JOB, WORKER_FOLDER, end_with_parent, on_signals
from src.errors import InputError, ProgramError, RunStopped, Terminated
from src.watch import CONNECT, Trouble, Watch, job_of

_GRACE = 120  # seconds that workers have to save and end after SIGTERM
_FAILING = 10  # seconds that workers have to end by themselves after another node has failed
_EXPLAINED = 3  # seconds for another node to tell the cause of an error here
_CLOSING = 10  # seconds that msrun's scheduler has to end after all workers of its node
# MindSpore's own log; and the line that a failing worker ends with, which is shown with its rank at the end.
_NOT_SHOWN = re.compile(r"\[(INFO|WARNING)\] |error: ")
_DIED = re.compile(r"Worker process (\d+) exit with exception")  # as msrun says of the first that it finds dead
_launches: Counter[Cluster] = Counter()
_watches: dict[Cluster, Watch] = {}  # for all programs of the command


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
    watch, job = None, secrets.token_hex(8)
    if cluster.nodes > 1:
        watch = _watches.get(cluster) or Watch(cluster, job_of(cluster, program, logs))
        _watches[cluster] = watch
        job = hashlib.sha256(json.dumps([watch.job, watch.finished, *program]).encode()).hexdigest()
    try:
        status, line = _run_watched(program, cluster, logs, terminated, watch, job)
    except (ProgramError, Terminated) as error:
        if watch is not None:
            watch.tell_failure(error.exit_status, f"error: {error}")
        raise
    if line:
        print(line, file=sys.stderr)
    if watch is not None:
        watch.tell_finished() if status == 0 else watch.tell_failure(status, line)
    return status


def _run_watched(
    program: Sequence[str], cluster: Cluster, logs: Path, terminated: list[float], watch: Watch | None, job: str
) -> tuple[int, str]:
    """The exit status, and what is still to be printed."""
    ranks = range(cluster.node_rank * cluster.devices, (cluster.node_rank + 1) * cluster.devices)
    names = [f"worker_{rank}" for rank in ranks]
    msrun_log = f"msrun_{cluster.node_rank}.log"
    own = [*names, "scheduler"] if cluster.node_rank == 0 else names
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for name in own:
            (logs / f"{name}.json").unlink(missing_ok=True)
            (logs / f"{name}.log").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write the logs of the workers in {logs}: {error}; choose another output_root"
        ) from None
    launch = _launches[cluster]
    _launches[cluster] += 1
    environment = {WORKER_FOLDER: str(logs), JOB: job, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (
        held_port(cluster, launch) as port,
        open(logs / msrun_log, "wb") as output,
        _on_signals(lambda: terminated.append(time.monotonic())),
    ):
        if watch is not None:
            trouble = watch.wait(lambda: bool(terminated))
            if terminated:
                raise Terminated("ended by SIGTERM or Ctrl-C before the other nodes came; the same command resumes")
            if trouble is not None:
                return _told(trouble)
        msrun = subprocess.Popen(
            [*_msrun(cluster, port, logs), *program],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C comes here alone
            preexec_fn=end_with_parent,
        )
        try:
            trouble, killed = _watch(msrun, logs, own, terminated, watch)
        except KeyboardInterrupt:
            msrun.send_signal(signal.SIGINT)  # kills the workers
            msrun.wait()
            raise
    failure = None
    try:
        status, line = _outcome(msrun.returncode, msrun_log, logs, names, bool(terminated))
    except (RunStopped, Terminated) as error:
        status, line, failure = error.exit_status, "", error
    if watch is not None and trouble is None and status == ProgramError.exit_status:
        trouble = watch.trouble(wait=_EXPLAINED)
    if trouble is not None and (killed or status == ProgramError.exit_status or (status == 4 and not terminated)):
        return _told(trouble)
    if failure is not None:
        raise failure
    return status, line


def _told(trouble: Trouble) -> tuple[int, str]:
    """What another node has said of its failure; RunStopped where it could not."""
    if trouble.announced:
        return trouble.status, trouble.message
    raise RunStopped(trouble.message)


def _msrun(cluster: Cluster, port: int, logs: Path) -> list[str]:
    options = {
        "worker_num": cluster.size,
        "local_worker_num": cluster.devices,
        "node_rank": cluster.node_rank,
        "master_addr": cluster.address,
        "master_port": port,
        "cluster_time_out": CONNECT,
        "log_dir": logs,
        "join": True,
    }
    return [sys.executable, "-m", "mindspore.parallel.cluster.run", *(f"--{k}={v}" for k, v in options.items())]


def _watch(
    msrun: subprocess.Popen, logs: Path, own: Sequence[str], terminated: list[float], watch: Watch | None
) -> tuple[Trouble | None, bool]:
    """Until msrun ends: show what the first worker of all prints, hand SIGTERM on, leave nothing hanging.

    own: the workers of this node, and the scheduler where that is here. Returns the trouble of another node, and
    whether the workers were killed because of it.
    """
    names = [name for name in own if name != "scheduler"]
    shown = 0
    handed_on = killed = False
    trouble = gone_at = None
    deadline = math.inf
    pids: dict[str, int] = {}  # kept here: the folder of the logs may be lost
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
            else:  # no SIGTERM: the workers wait for each other where no Python runs
                deadline = now + _FAILING
        if terminated and not handed_on and len(workers) == len(names):
            _signal(workers, signal.SIGTERM)
            handed_on = True
        if now > min(deadline, terminated[0] + _GRACE if terminated else math.inf):
            killed = killed or now > deadline
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
    for line in text[:end].decode("utf-8", "replace").splitlines(keepends=True):
        if not _NOT_SHOWN.match(line):
            sys.stdout.write(line)
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


def _outcome(msrun_status: int, msrun_log: str, logs: Path, names: Sequence[str], terminated: bool) -> tuple[int, str]:
    """The exit status and message of the worker that failed first; or 0."""
    reports = {name: _read(logs, name) for name in names}
    failed = [name for name in names if reports[name].get("status", 0) != 0]
    if failed:
        first = min(failed, key=lambda name: reports[name]["time"])
        return reports[first]["status"], f"{first.replace('_', ' ')}: {reports[first]['message']} (logs: {logs})"
    if all(report.get("status") == 0 for report in reports.values()):
        return 0, ""
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
