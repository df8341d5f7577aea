"""Exit statuses and the one line on stderr."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT

from src.environment import run_program
from src.errors import InputError, RunStopped, Terminated


@pytest.mark.parametrize(
    "error, status",
    [
        (InputError("x.json: mend it"), 2),
        (RunStopped("x.json: mend it"), 3),
        (Terminated("x.json: mend it"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_a_status(error, status, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == status and len(lines) == 1
    assert status == 130 or "x.json" in lines[0]


def test_sigterm_is_status_4_wherever_it_comes(capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            run_program(lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 4 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_defect_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run_program(lambda: open("/absent"))  # noqa: SIM115


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")
def test_a_child_ends_with_its_killed_parent():
    code = (
        "import subprocess, time; from src.environment import end_with_parent; "
        "print(subprocess.Popen(['sleep', '60'], preexec_fn=end_with_parent).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = Path(f"/proc/{int(parent.stdout.readline())}/cmdline")

    def runs():
        try:
            return "sleep" in child.read_text()
        except OSError:
            return False

    assert runs()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs()
