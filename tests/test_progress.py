"""What is shown of the progress of long work."""

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest
from tiny import WORLD

from src.runtime.progress import Progress

NESTED = """
import time
from src.runtime.progress import Progress, say
with Progress("outer", 2, "step") as bar:
    for _ in range(2):
        for _ in Progress("inner", 4, "batch").over(range(4)):
            time.sleep(0.4)
        bar.update(note="loss 1.5")
        say("a line")
"""


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test advances by itself."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def lines_of(capsys) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    return err.splitlines()


def test_a_log_has_a_line_every_30_seconds(clock, capsys):
    """Steps 51 to 58 of 100 take 10 s each: a line after three and after six, and a last one at the end."""
    with Progress("CE", 100, "step", start=50) as bar:
        for step in range(51, 59):
            clock[0] += 10
            bar.update(note=f"loss {100 - step}")
    assert lines_of(capsys) == [
        "CE:  53% 53/100 [00:30<07:50, 10.00s/step, loss 47]",  # 47 steps are left
        "CE:  56% 56/100 [01:00<07:20, 10.00s/step, loss 44]",
        "CE:  58% 58/100 [01:20<07:00, 10.00s/step]",
    ]


def test_a_log_of_long_work_has_a_hundred_lines(clock, capsys):
    for _ in Progress("CE", 1000, "step").over(range(1000)):
        clock[0] += 40
    lines = lines_of(capsys)
    assert len(lines) == 100
    assert lines[0].startswith("CE:   1% 10/1000 ") and lines[-1].startswith("CE: 100% 1000/1000 ")


def test_short_work_leaves_no_line(clock, capsys):
    with Progress("CE", 100, "step") as bar:
        clock[0] += 29
        bar.update(100)
    assert lines_of(capsys) == []


@pytest.mark.parametrize("hidden", ["another worker", "another process"])
def test_one_process_shows_it(hidden, clock, capsys, monkeypatch):
    if hidden == "another worker":
        monkeypatch.setenv("MS_ROLE", "MS_WORKER")
        monkeypatch.setenv("RANK_ID", "1")
    with Progress("CE", 2, "step", shown=hidden != "another process") as bar:
        clock[0] += 40
        bar.update()
    assert lines_of(capsys) == []
    monkeypatch.setenv("RANK_ID", "0")
    with Progress("CE", 2, "step") as bar:
        clock[0] += 40
        bar.update()
    assert len(lines_of(capsys)) == 1


def test_a_terminal_has_bars_one_below_the_other():
    terminal, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns
    child = subprocess.Popen([sys.executable, "-c", NESTED], cwd=WORLD, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):  # when the child has closed its side
        while some := os.read(terminal, 4096):
            shown += some
    os.close(terminal)
    out, _ = child.communicate()
    assert child.returncode == 0 and out == b"a line\na line\n"
    text = shown.decode()
    assert re.search(r"inner:  75%\|[^|]+\| 3/4 \[00:01<00:00,  2\.\d+batch/s\]", text), text
    assert re.search(r"outer:  50%\|[^|]+\| 1/2 \[00:01<00:01,  1\.\d+s/step, loss 1\.5\]", text), text
    assert len(re.findall(r"inner: 100%[^\r]+\r\n\r {60,}\x1b\[A\router", text)) == 2, text  # it goes
