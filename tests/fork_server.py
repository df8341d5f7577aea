"""A process that imports MindSpore once, and forks itself for each program that tests/forked_python.py asks for.

python fork_server.py SOCKET PARENT: ends with the process that started it. Importing MindSpore and MindFormers takes 8
to 12 seconds of processor time, more than most programs of the tests run for. This imports nothing of the project: a
program finds its own sources.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Sequence

from pycocoevalcap.meteor import meteor

PRELOADED = ("mindspore.dataset", "mindformers.core.optim.adamw", "pycocoevalcap.cider.cider")
MAXIMUM = 1 << 20  # bytes of a request


def serve(path: str, parent: int) -> list[str]:
    """Returns in each forked process, prepared as it was asked for, with the arguments of Python."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for the tests
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        listening.settimeout(1)
        while True:
            try:
                client, _ = listening.accept()
            except TimeoutError:
                if os.getppid() != parent:  # which may be killed
                    sys.exit()
                continue
            if "mindspore" not in sys.modules:
                for module in PRELOADED:
                    importlib.import_module(module)
                meteor.__file__ = os.path.abspath("meteor/meteor.py")  # tests/tiny.py
                gc.freeze()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.setblocking(True)
    request, files, _, _ = socket.recv_fds(client, MAXIMUM, 3)
    if not request:  # it was killed before it asked
        os._exit(0)
    child = os.fork()
    if child:
        keep(child, client, files)
    client.close()
    return prepare(files, **json.loads(request))


def keep(child: int, client: socket.socket, files: Sequence[int]) -> None:
    """Hand the client's signals on to the child, and the child's status to the client; kill it when that is killed."""
    for file in (*files, 0, 1, 2):
        os.close(file)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([ended, client], [], [])
        if ended in ready:
            _, status = os.waitpid(child, 0)
            client.send(struct.pack("i", status))
            os._exit(0)
        if number := client.recv(1):
            os.kill(child, number[0])
        else:  # with what it has started in its group, which is not the client's
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os._exit(0)


def prepare(
    files: Sequence[int], command: list[str], folder: str, environment: dict[str, str], ignored: bool, python: str
) -> list[str]:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # TMPDIR may be another one
    sys.executable = python  # what the program starts is forked too
    return command


def run(command: list[str]) -> None:
    """What `python *command` does, for a file, -m and a module, or -c and its text."""
    kind = command.pop(0) if command[0] in ("-m", "-c") else "file"
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [os.path.dirname(os.path.realpath(command[0])) if kind == "file" else "", *added]
    sys.argv[:] = ["-c", *command[1:]] if kind == "-c" else command
    file = {"-m": find_module, "-c": str, "file": os.path.realpath}[kind](command[0])
    from mindspore.graph import api

    api.entry_script_path, api.sys_path = file, sys.path[1:]  # as its import finds them, for its cache of graphs
    if kind == "-m":
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    elif kind == "file":
        runpy.run_path(command[0], run_name="__main__")
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[0], "<string>", "exec"), sys.modules["__main__"].__dict__)


def find_module(name: str) -> str:
    spec = importlib.util.find_spec(name)
    return find_module(f"{name}.__main__") if spec.submodule_search_locations else spec.origin


if __name__ == "__main__":
    run(serve(sys.argv[1], int(sys.argv[2])))
