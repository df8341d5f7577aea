"""The environment of a program: set before MindSpore is imported, and never undone."""

import contextlib
import ctypes
import errno
import io
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import Any

from src.runtime.errors import InputError, ProgramError, Terminated
from src.runtime.files import ROOT
from src.runtime.leftovers import CLUSTER_VARIABLES, check_cluster_variables

# Environment variables that the programs of a command inherit.
_START = "CAPTIONER_START"  # when the first of them was started
_SAID = "CAPTIONER_SAID"  # a file of the lines that say_once has printed, deleted with the first of them
_CALLER = "CAPTIONER_CALLER"  # the folder that a script was called from
WORKER_FOLDER = "CAPTIONER_WORKER_FOLDER"  # where workers leave reports for src.runtime.launch
JOB = "CAPTIONER_JOB"  # hex digits that all workers of one program share
_REPORT_BYTES = 4096  # reserved for a worker's report at its start, so that its last words fit on a full disk
# Lines of libraries that mean nothing to a user: by message and module, and by logger and message.
_WARNINGS = (
    ("invalid escape sequence", r".*(site|dist)-packages"),  # Python 3.12 compiles jieba and pycocoevalcap
    (r"Image (size|was|appears)|(Possibly c|C)orrupt EXIF|Metadata Warning|Expecting to read|Truncated File", r"PIL\."),
    (r"Palette images|Invalid APNG|Couldn't allocate palette", r"PIL\."),  # the photograph is read, or its error shown
    (r"Glyph \d+ .*missing from", r"(src|matplotlib)\."),
    ("The value of the smallest subnormal", r"numpy\."),  # MindSpore flushes subnormals to zero
)
_LOGS = {
    "jieba": r"Building prefix dict|Loading model|Dumping model|Prefix dict has been built",
    "matplotlib.font_manager": r"Matplotlib is building the font cache|findfont: ",
    "PIL.TiffImagePlugin": r"More samples per pixel",
}


def prepare_environment(*, convolutions: bool) -> None:
    """Set what MindSpore and MindFormers read at import time; variables that the user has set win.

    convolutions: whether the process runs an encoder, which features from a cache do not need.
    """
    if convolutions and convolutions_are_slow():
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        say_once("environment: ONEDNN_MAX_CPU_ISA=AVX2 (fast convolutions on CPU)")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors only
    # By default, MindFormers creates a log folder in the working directory.
    log_path = os.environ.setdefault("LOG_MF_PATH", f"{tempfile.gettempdir()}/mindformers-log-{os.getuid()}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for message, module in _WARNINGS:
        warnings.filterwarnings("ignore", message, module=module)
    for name, message in (_LOGS | {f"mindformers{log_path}": "Import PyNative"}).items():
        logging.getLogger(name).addFilter(partial(_is_not, message))


def _is_not(message: str, record: logging.LogRecord) -> bool:
    return not re.match(message, record.getMessage())


def convolutions_are_slow() -> bool:
    """Return whether oneDNN may take its AVX-512 path; `prepare_environment(convolutions=True)` rules it out.

    That path runs convolutions with kernels larger than 1x1 in a reference implementation, 100 times slower, but
    matrix products 1.5 times as fast as AVX2.
    """
    return platform.machine() in ("x86_64", "AMD64") and "ONEDNN_MAX_CPU_ISA" not in os.environ


def say_once(line: str) -> None:
    """Print a line on stderr, once for all programs of a command."""
    if not is_first_worker():
        return
    mark = f"{line!a}\n"
    with contextlib.suppress(OSError), open(os.environ.get(_SAID, os.devnull), "a+") as file:
        file.seek(0)
        if mark in file.read():
            return
        file.write(mark)
    print(line, file=sys.stderr, flush=True)


def run_program(main: Callable[[], None]) -> None:
    """Run `main` and end the process with the exit status that `src.runtime.errors` defines.

    SIGTERM and Ctrl-C raise Terminated, once.
    """
    for stream in (sys.stdout, sys.stderr):  # whatever the locale, no character may end a program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signals: list[bool] = []

    def terminate() -> None:
        signals.append(True)
        if len(signals) == 1:  # Ctrl-C also arrives as SIGTERM from src.runtime.launch
            raise Terminated("ended by SIGTERM or Ctrl-C; computed results are kept; run the same command to resume")

    def end(status: int, message: str) -> None:
        if "fresh=true" in sys.argv:  # which would delete what was saved
            message = message.replace("the same command", "the same command without fresh=true")
        _report_worker(status, message)
        with contextlib.suppress(OSError):  # a worker's log may be on a full disk
            print(message, file=sys.stderr, flush=True)
        sys.exit(status)

    if os.environ.get("MS_ROLE") != "MS_SCHED":  # msrun's scheduler waits in C++
        on_signals(terminate)
    os.environ.setdefault(_START, str(time.time()))  # programs that this one starts inherit it
    if WORKER_FOLDER in os.environ:
        end_with_parent()
    caller = os.environ.pop(_CALLER, ".")
    try:
        os.chdir(caller)  # relative paths are relative to the caller's folder
    except OSError as error:
        end(InputError.exit_status, f"error: cannot enter {caller}, the folder of the call: {error.strerror}")
    _report_worker()
    try:
        with contextlib.ExitStack() as ending:
            if _SAID not in os.environ:
                with contextlib.suppress(OSError):  # on a full disk, lines may be repeated
                    said = tempfile.NamedTemporaryFile(prefix="captioner-said-")  # noqa: SIM115 (closed by `ending`)
                    os.environ[_SAID] = ending.enter_context(said).name
                    ending.callback(os.environ.pop, _SAID)
            if WORKER_FOLDER not in os.environ:
                check_cluster_variables()
            main()
    except (ProgramError, Terminated) as error:
        end(error.exit_status, f"error: {error}")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _report_worker(128 + signal.SIGPIPE, "the reader of the output has ended")
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        end(130, "interrupted")
    except Exception as error:
        full_or_closed = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
        if isinstance(error, OSError) and error.errno in full_or_closed:
            place = error.filename or "a file, most likely under output_root"  # unknown for a write to an open file
            fix = "free space or fix its permissions; checkpoints are kept; run the same command to resume"
            end(InputError.exit_status, f"error: {place}: {error.strerror}; {fix}")
        _report_worker(1, f"error: {type(error).__name__}: {error}")
        raise
    _report_worker(0, "done")


def on_signals(action: Callable[[], object]) -> None:
    """Call `action` on SIGTERM or Ctrl-C; the second Ctrl-C raises KeyboardInterrupt.

    The call waits for the end of an import or of a graph's compilation: MindSpore calls Python from C++ in both, and an
    exception there crashes the process. It also waits for the end of a finaliser, where Python ignores exceptions.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if _must_wait(frame):
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
            return
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # background jobs of a shell ignore Ctrl-C
        signal.signal(signal.SIGINT, handle)


def _must_wait(frame: FrameType | None) -> bool:
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib") or (name == "compile" and file.endswith("mindspore/graph/api.py")):
            return True
        if name == "__del__" or file == weakref.__file__:
            return True
        frame = frame.f_back
    return False


def start_time() -> float:
    """Return when the whole command was started, in seconds since 1970."""
    return float(os.environ.get(_START, time.time()))


def _report_worker(status: int | None = None, message: str = "") -> None:
    """Report the process id and, at the end, the exit status of a worker to src.runtime.launch."""
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
    """Return options for a process that runs `python -m src...`: it imports the repository and works in this folder."""
    return {"cwd": ROOT, "env": {**environment, _CALLER: os.getcwd()}}


def is_first_worker() -> bool:
    """Return whether this process is the first that msrun started, or the only one."""
    return "MS_ROLE" not in os.environ or os.environ.get("RANK_ID") == "0"


def leave_workers() -> None:
    """Make a process that a worker started forget that its parent is one."""
    for variable in (WORKER_FOLDER, JOB, *CLUSTER_VARIABLES):
        os.environ.pop(variable, None)


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent ends, even if killed. Works on Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Discard the lines that libraries print on stdout (pycocotools and pycocoevalcap print progress)."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
