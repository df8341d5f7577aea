"""Programs of the project in processes that are forked from one which has imported MindSpore already.

Importing MindSpore and MindFormers takes 12 seconds of processor time, more than most programs of the tests run for.
This module imports nothing of the project: a program finds its own sources.
"""

import importlib.util
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mindspore.dataset", "mindformers.core.optim.adamw", "pycocoevalcap.cider.cider"])


class Program:
    """What subprocess.Popen is for `python *command` in `folder`. command: a program's file, or -m and a module."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        self.args = command
        self._outputs = tempfile.TemporaryDirectory()
        self._files = [os.path.join(self._outputs.name, name) for name in ("stdout", "stderr")]
        self._process = _FORKS.Process(target=_run, args=(command, folder, dict(os.environ), self._files))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (Path(file).read_text() for file in self._files)
        return out, err


def run_forked(command: tuple[str, ...], folder: Path, timeout: float | None = None) -> subprocess.CompletedProcess:
    """What subprocess.run returns."""
    program = Program(command, folder)
    try:
        out, err = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def _run(command: tuple[str, ...], folder: Path, environment: dict[str, str], files: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww", (-1, 1, 1))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    here = Path(__file__).resolve().parent
    sys.path[:] = ["", *(path for path in sys.path if path and Path(path).resolve() not in (here, here.parent))]
    is_module = command[0] == "-m"
    sys.argv[:] = command[1:] if is_module else command
    _tell_mindspore(_file_of(command[1]) if is_module else command[0])
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _file_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return _file_of(f"{module}.__main__") if spec.submodule_search_locations else spec.origin


def _tell_mindspore(program: str) -> None:
    """What MindSpore looked for when it was imported, and its cache of graphs depends on."""
    from mindspore.graph import api

    api.entry_script_path = os.path.realpath(program)
    api.sys_path = sys.path[1:]
