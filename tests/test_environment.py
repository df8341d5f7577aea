"""Exit statuses and the one line on stderr."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import pytest
from PIL import Image
from tiny import WORLD

from src.data.photographs import decode
from src.runtime.environment import on_signals, run_program, say_once
from src.runtime.errors import InputError, RunStopped, Terminated


@pytest.fixture
def signals():
    """As a program in a terminal has them; put back afterwards."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


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
@pytest.mark.usefixtures("signals")
def test_errors_are_one_line_and_a_status(error, status, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == status and len(lines) == 1
    assert status == 130 or "x.json" in lines[0]


PRINTS = """
from src.runtime.environment import run_program, say_once
from src.runtime.errors import InputError

def main():
    say_once("日本 \\ud83d")
    say_once("日本 \\ud83d")
    print("naïve \\u202f 写真 \\udce9")
    raise InputError("é 写")

run_program(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8", "latin-1:strict"])
def test_no_character_ends_a_program(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    environment.pop("CAPTIONER_SAID", None)
    done = subprocess.run([sys.executable, "-c", PRINTS], cwd=WORLD, capture_output=True, env=environment)
    codec = encoding.partition(":")[0]
    assert done.returncode == 2, done.stderr
    assert done.stdout.decode(codec) == "naïve \u202f 写真 \\udce9\n".encode(codec, "backslashreplace").decode(codec)
    said, error = done.stderr.decode(codec).splitlines()
    assert said == "日本 \\ud83d".encode(codec, "backslashreplace").decode(codec)
    assert error == "error: é 写".encode(codec, "backslashreplace").decode(codec)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_status_4_wherever_they_come(signum, signals, capsys):
    def main():
        try:
            os.kill(os.getpid(), signum)
        finally:  # the other of a terminal's and a parent's, while files are closed
            os.kill(os.getpid(), signal.SIGINT + signal.SIGTERM - signum)

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    assert stop.value.code == 4 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_wait_for_the_end_of_an_import(signum, signals, tmp_path, monkeypatch, capsys):
    """MindSpore's calls Python from C++, which ends with a dump where that raises."""
    name = f"signalled_{signum}"
    (tmp_path / f"{name}.py").write_text(f"import os, time\nos.kill(os.getpid(), {signum:d})\ntime.sleep(0.3)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def main():
        importlib.import_module(name)
        print("imported", flush=True)
        time.sleep(30)

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (4, "imported\n") and err.startswith("error: ended by SIGTERM or Ctrl-C")


def test_signals_wait_for_the_end_of_a_finaliser(signals, capsys):
    """Python ignores an exception there, and the signal would be lost."""

    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            print("finalised", flush=True)

    def main():
        Finalised()
        time.sleep(30)

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (4, "finalised\n") and err.startswith("error: ended by SIGTERM or Ctrl-C")


def test_signals_wait_for_the_end_of_a_compilation(signals, monkeypatch, capfd):
    """MindSpore's compiler calls Python from C++, as here to parse a cell."""
    parse, parsed = ms.graph._parse.parse_cb, []

    def signalled(*arguments):
        if not parsed:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        parsed.append(1)
        return parse(*arguments)

    class Halved(ms.nn.Cell):
        def construct(self, x):
            return x / 2

    def main():
        monkeypatch.setattr(ms.graph._parse, "parse_cb", signalled)
        ms.set_context(mode=ms.GRAPH_MODE)
        Halved()(ms.Tensor([2.0]))
        time.sleep(30)

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    assert stop.value.code == 4 and parsed
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_taken_for_a_broken_file(signum, signals, monkeypatch):
    """Who catches the many exceptions of Pillow's decoders."""

    def main():
        monkeypatch.setattr(Image, "open", lambda *arguments, **options: os.kill(os.getpid(), signum))
        decode(b"any")

    with pytest.raises(SystemExit) as stop:
        run_program(main)
    assert stop.value.code == 4


def test_a_reader_of_the_output_may_leave():
    """As `head` does."""
    code = "from src.runtime.environment import run_program\ndef main():\n while True: print('row')\nrun_program(main)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=WORLD, stdout=-1, stderr=-1)
    assert process.stdout.readline() == b"row\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_a_second_ctrl_c_does_not_wait(signals):
    taken = []
    on_signals(lambda: taken.append(1))
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert taken == [1]


def test_jobs_in_the_background_ignore_ctrl_c(signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_signals(lambda: pytest.fail("taken"))
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("signals")
def test_a_defect_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run_program(lambda: open("/absent"))  # noqa: SIM115


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")
def test_a_child_ends_with_its_killed_parent():
    code = (
        "import subprocess, time; from src.runtime.environment import end_with_parent; "
        "print(subprocess.Popen(['sleep', '60'], preexec_fn=end_with_parent).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=WORLD, stdout=subprocess.PIPE, text=True)
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


SAYS = "from src.runtime.environment import say_once; say_once('once'); say_once('more'); say_once('once')"


def test_a_line_is_said_once_by_all_programs_of_a_command(capfd):
    def main():
        say_once("once")
        for rank in ("0", "1"):  # the others' logs are not shown
            worker = {"MS_ROLE": "MS_WORKER", "RANK_ID": rank} if rank == "1" else {}
            subprocess.run([sys.executable, "-c", SAYS], cwd=WORLD, env=os.environ | worker, check=True)

    for _ in range(2):
        run_program(main)
        assert capfd.readouterr().err == "once\nmore\n"


def test_a_message_does_not_advise_fresh_true_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "fresh=true"])

    def main():
        raise Terminated("last is saved, the same command goes on")

    with pytest.raises(SystemExit):
        run_program(main)
    assert capsys.readouterr().err == "error: last is saved, the same command without fresh=true goes on\n"


def test_a_caller_whose_folder_is_gone(monkeypatch, capsys):
    monkeypatch.setenv("CAPTIONER_CALLER", "/gone")
    with pytest.raises(SystemExit) as stop:
        run_program(lambda: None)
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("error: cannot enter /gone, the folder of the call: No such file or directory\n")


LIBRARIES = """
import logging, warnings
from src.runtime.environment import prepare_environment
prepare_environment(convolutions=False)
for message in ("Glyph 9 (x) missing from font(s) y", "a new warning"):
    warnings.warn_explicit(message, UserWarning, "plots.py", 1, module="src.evaluation.plots")
for message in ("Building prefix dict", "a new line"):
    logging.getLogger("jieba").warning(message)
"""


def test_only_known_lines_of_libraries_are_hidden():
    done = subprocess.run([sys.executable, "-c", LIBRARIES], cwd=WORLD, capture_output=True, text=True)
    assert "a new warning" in done.stderr and "a new line" in done.stderr
    assert "Glyph" not in done.stderr and "Building" not in done.stderr
