"""Environment of a program: set before MindSpore is imported, and restored by nobody."""

import contextlib
import ctypes
import errno
import io
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from src.runtime.errors import InputError, ProgramError, Terminated
from src.runtime.files import ROOT
from src.runtime.leftovers import CLUSTER_VARIABLES, check_cluster_variables

_START = "CAPTIONER_START"  # environment variable: when the first program of a command was started
_SAID = "CAPTIONER_SAID"  # environment variable: a file of the lines that a command's programs print once
_CALLER = "CAPTIONER_CALLER"  # environment variable: the folder that a script was called from
_REPORT_BYTES = 4096  # of a worker's report from its start, so that its last words need no room on a full disk
# Environment variable of workers: where they leave what src.runtime.launch reads.
WORKER_FOLDER = "CAPTIONER_WORKER_FOLDER"
JOB = "CAPTIONER_JOB"  # environment variable of workers: hex digits that all those of one program have in common


def prepare_environment(*, convolutions: bool) -> None:
    """Set what MindSpore and MindFormers read at import time. What the user has set wins.

    convolutions: whether the process runs an encoder; features from a cache need none.
    """
    if convolutions and convolutions_are_slow():
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        say_once("environment: ONEDNN_MAX_CPU_ISA=AVX2 (fast convolutions on CPU)")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors only
    # MindFormers makes a log folder in the working directory unless it is told where.
    os.environ.setdefault("LOG_MF_PATH", os.path.join(tempfile.gettempdir(), f"mindformers-log-{os.getuid()}"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # A user sees this program's lines, not those of the libraries below it; their errors still come through.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def convolutions_are_slow() -> bool:
    """Whether oneDNN may take its AVX-512 path in this process; not after `prepare_environment(convolutions=True)`.

    There, convolutions with kernels larger than 1x1 fall back to a reference implementation, 100 times slower; matrix
    products are 1.5 times as fast as with AVX2.
    """
    return platform.machine() in ("x86_64", "AMD64") and "ONEDNN_MAX_CPU_ISA" not in os.environ


def say_once(line: str) -> None:
    """Print a line on stderr, once per command: not again where another of its programs has printed it."""
    if not is_first_worker():
        return
    mark = f"{line!a}\n"
    with contextlib.suppress(OSError), open(os.environ.get(_SAID, os.devnull), "a+") as file:
        file.seek(0)
        if mark in file.read():
            return
        file.write(mark)
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _lines_said() -> Iterator[None]:
    """Have the programs that a command starts share what `say_once` has printed; the file goes with the command."""
    with contextlib.ExitStack() as ending:
        with contextlib.suppress(OSError):  # a full disk: the lines come more than once
            if _SAID not in os.environ:
                os.environ[_SAID] = ending.enter_context(tempfile.NamedTemporaryFile(prefix="captioner-said-")).name
                ending.callback(os.environ.pop, _SAID)
        yield


def run_program(main: Callable[[], None]) -> None:
    """Run `main`, and end the process with the exit status that `src.runtime.errors` defines.

    SIGTERM and Ctrl-C raise Terminated, once.
    """

    for stream in (sys.stdout, sys.stderr):  # no character may end a program, whatever the locale can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signals: list[bool] = []

    def terminate() -> None:
        signals.append(True)
        if len(signals) == 1:  # a Ctrl-C comes from the terminal, and as SIGTERM from src.runtime.launch
            raise Terminated("ended by SIGTERM or Ctrl-C; what was computed is kept, the same command goes on")

    def end(status: int, message: str) -> None:
        if "fresh=true" in sys.argv:  # which would delete what the message calls saved
            message = message.replace("the same command", "the same command without fresh=true")
        _report_worker(status, message)
        with contextlib.suppress(OSError):  # a worker's log may lie on a disk that is full
            print(message, file=sys.stderr, flush=True)
        sys.exit(status)

    if os.environ.get("MS_ROLE") != "MS_SCHED":  # msrun's scheduler waits where no Python runs
        on_signals(terminate)
    os.environ.setdefault(_START, str(time.time()))  # programs that this one starts inherit it
    if WORKER_FOLDER in os.environ:
        end_with_parent()
    caller = os.environ.pop(_CALLER, ".")
    try:
        os.chdir(caller)  # relative paths are those of whoever calls a script
    except OSError as error:
        end(InputError.exit_status, f"error: {caller}, which this was called from, cannot be entered: {error.strerror}")
    _report_worker()
    try:
        with _lines_said():
            if WORKER_FOLDER not in os.environ:
                check_cluster_variables()
            main()
    except (ProgramError, Terminated) as error:
        end(error.exit_status, f"error: {error}")
    except BrokenPipeError:  # who read it, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _report_worker(128 + signal.SIGPIPE, "the reader of the output has ended")
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            _report_worker(1, f"error: {type(error).__name__}: {error}")
            raise
        place = error.filename or "a file, most likely under output_root"  # a write to an open file does not say which
        mend = "free space or mend its permissions; checkpoints are kept, and the same command goes on"
        end(InputError.exit_status, f"error: {place}: {error.strerror}; {mend}")
    except KeyboardInterrupt:
        end(130, "interrupted")
    except Exception as error:
        _report_worker(1, f"error: {type(error).__name__}: {error}")
        raise
    _report_worker(0, "done")


def on_signals(action: Callable[[], object]) -> None:
    """Do `action` when SIGTERM or Ctrl-C comes; the second Ctrl-C is a KeyboardInterrupt.

    It waits for the end of an import, and of the compilation of a graph: MindSpore calls Python from C++ in both, where
    an exception ends in a dump.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if _is_below_cpp(frame):
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
            return
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's jobs in the background ignore it
        signal.signal(signal.SIGINT, handle)


def _is_below_cpp(frame: FrameType | None) -> bool:
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib") or (name == "compile" and file.endswith("mindspore/graph/api.py")):
            return True
        frame = frame.f_back
    return False


def start_time() -> float:
    """When the whole command was started, in seconds since 1970."""
    return float(os.environ.get(_START, time.time()))


def _report_worker(status: int | None = None, message: str = "") -> None:
    """Leave process id and, at the end, exit status where src.runtime.launch looks for those of workers."""
    if WORKER_FOLDER in os.environ:
        scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
        name = "scheduler" if scheduler else f"worker_{os.environ.get('RANK_ID', 0)}"
        report: dict[str, object] = {"pid": os.getpid()}
        if status is not None:
            report |= {"status": status, "message": message, "time": time.time()}
        path = os.path.join(os.environ[WORKER_FOLDER], f"{name}.json")
        with contextlib.suppress(OSError), open(path, "r+" if os.path.exists(path) else "w") as file:
            file.write(json.dumps(report).ljust(_REPORT_BYTES))


def for_modules(environment: Mapping[str, str]) -> dict[str, Any]:
    """Options of a process that is to run `python -m src...`: imported from the repository, working in this folder."""
    return {"cwd": ROOT, "env": {**environment, _CALLER: os.getcwd()}}


def is_first_worker() -> bool:
    """Whether this process is the first of those that msrun has started, or the only one."""
    return "MS_ROLE" not in os.environ or os.environ.get("RANK_ID") == "0"


def leave_workers() -> None:
    """For a process that a worker starts, and that is none."""
    for variable in (WORKER_FOLDER, JOB, *CLUSTER_VARIABLES):
        os.environ.pop(variable, None)


def end_with_parent() -> None:
    """Have this process sent SIGTERM when its parent ends, also where that is killed. On Linux; nowhere else."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print to stdout nowhere (pycocotools and pycocoevalcap print progress)."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
