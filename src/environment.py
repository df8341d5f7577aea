"""Environment of a program: set before MindSpore is imported, and restored by nobody."""

import contextlib
import ctypes
import errno
import logging
import os
import platform
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable

from src.errors import InputError, ProgramError, Terminated


def prepare_environment(*, convolutions: bool) -> None:
    """Set what MindSpore and MindFormers read at import time. What the user has set wins.

    convolutions: whether the process runs an encoder; features from a cache need none.
    """
    if convolutions and convolutions_are_slow():
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        print("environment: ONEDNN_MAX_CPU_ISA=AVX2 (fast convolutions on CPU)", file=sys.stderr)
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


def run_program(main: Callable[[], None]) -> None:
    """Run `main`, and end the process with the exit status that `src.errors` defines; SIGTERM raises Terminated."""

    def terminate(signum: int, frame: object) -> None:
        raise Terminated("ended by SIGTERM; what was computed is kept, the same command goes on")

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
    except ProgramError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; checkpoints are kept", file=sys.stderr)
        sys.exit(InputError.exit_status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def end_with_parent() -> None:
    """Have this process sent SIGTERM when its parent ends, also where that is killed. On Linux; nowhere else."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


@contextlib.contextmanager
def quiet_stdout():
    """Send what libraries print to stdout nowhere (pycocotools and pycocoevalcap print progress)."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
