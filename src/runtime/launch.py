"""Starts a program of the project on one device or several, waits for it, and ends with its exit status.

Several devices: msrun starts one worker for each, and on the first node a scheduler, which connects them. What the
first worker prints is shown here; all logs are in a folder. A worker leaves its process id and, at its end, its exit
status and message there (src/runtime/environment.py), since msrun reports neither. The launchers of several nodes watch
each other (src/runtime/node_watch.py): if one is lost or fails, the others end too.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from src.runtime.cluster import Cluster, held_port
from src.runtime.environment import JOB, WORKER_FOLDER, end_with_parent, for_modules, on_signals
from src.runtime.errors import ProgramError, RunStopped, Terminated
from src.runtime.files import writing
from src.runtime.node_watch import NodeWatch, Trouble
from src.runtime.node_workers import msrun_command, outcome, watch_workers

_EXPLAINED = 3  # seconds that another node has to explain an error here
_launches: Counter[Cluster] = Counter()
_watches: dict[Cluster, NodeWatch] = {}  # for all programs of the command


def launch(program: Sequence[str], cluster: Cluster, logs: Path) -> None:
    """Run `program` (a Python file and its arguments); if it fails, end this process with its exit status.

    logs: the folder for the logs of several workers. SIGTERM is passed on, and Ctrl-C as SIGTERM; the workers decide
    together where to stop. Raises Terminated if they did not stop, so that no other program follows.
    """
    terminated: list[float] = []
    logs = logs.absolute()  # the workers start at the root
    status = _run_one(program, terminated) if cluster.size == 1 else _run_workers(program, cluster, logs, terminated)
    if terminated and status <= 0:  # it had finished, or not begun
        raise Terminated("ended by SIGTERM or Ctrl-C; run the same command to resume")
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
        except KeyboardInterrupt:  # the child has received it too
            return child.wait()


def _run_workers(program: Sequence[str], cluster: Cluster, logs: Path, terminated: list[float]) -> int:
    if cluster.nodes == 1:
        status, line = _run_watched(program, cluster, logs, terminated, None)
    else:
        watch = _watches.get(cluster) or NodeWatch(cluster, program, logs)
        _watches[cluster] = watch
        try:
            status, line = _run_watched(program, cluster, logs, terminated, watch)
        except (ProgramError, Terminated) as error:
            watch.tell_failure(error.exit_status, f"error: {error}")
            raise
        watch.tell_finished() if status == 0 else watch.tell_failure(status, line)
    if line:
        print(line, file=sys.stderr)
    return status


def _run_watched(
    program: Sequence[str], cluster: Cluster, logs: Path, terminated: list[float], watch: NodeWatch | None
) -> tuple[int, str]:
    """Return the exit status, and a line to print."""
    first = cluster.node_rank * cluster.devices
    names = [f"worker_{rank}" for rank in range(first, first + cluster.devices)]
    own = [*names, "scheduler"] if cluster.node_rank == 0 else names
    msrun_log = logs / f"msrun_{cluster.node_rank}.log"
    with writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
        for name in own:
            (logs / f"{name}.json").unlink(missing_ok=True)
            (logs / f"{name}.log").unlink(missing_ok=True)
    job = secrets.token_hex(8) if watch is None else watch.job(program)
    environment = {WORKER_FOLDER: str(logs), JOB: job, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    _launches[cluster] += 1
    with (
        held_port(cluster, _launches[cluster] - 1) as port,
        open(msrun_log, "wb") as output,
        _on_signals(lambda: terminated.append(time.monotonic())),
    ):
        if watch is not None:
            trouble = watch.wait(lambda: bool(terminated))
            if terminated:
                raise Terminated("ended by SIGTERM or Ctrl-C before the other nodes joined; run the same command again")
            if trouble is not None:
                return _announced(trouble)
        msrun = subprocess.Popen(
            [*msrun_command(cluster, port, logs), *program],
            stdout=output,
            stderr=subprocess.STDOUT,
            **for_modules(os.environ | environment),
            start_new_session=True,  # Ctrl-C reaches this process alone
            preexec_fn=end_with_parent,
        )
        try:
            trouble, killed = watch_workers(msrun, logs, own, terminated, watch)
        except KeyboardInterrupt:
            msrun.send_signal(signal.SIGINT)  # kills the workers
            msrun.wait()
            raise
    lost = None
    try:
        status, line = outcome(msrun.returncode, msrun_log, logs, names, bool(terminated))
    except (RunStopped, Terminated) as error:
        status, line, lost = error.exit_status, "", error
    if watch is not None and trouble is None and status == ProgramError.exit_status:
        trouble = watch.trouble(wait=_EXPLAINED)
    follows = killed or status == ProgramError.exit_status or (status == Terminated.exit_status and not terminated)
    if trouble is not None and follows:
        return _announced(trouble)
    if lost is not None:
        raise lost
    return status, line


def _announced(trouble: Trouble) -> tuple[int, str]:
    """Return what another node announced of its failure. Errors: RunStopped if that node is lost."""
    if not trouble.announced:
        raise RunStopped(trouble.message)
    return trouble.status, trouble.message


@contextlib.contextmanager
def _on_signals(action: Callable[[], object]) -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    on_signals(action)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
