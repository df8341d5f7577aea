"""Two workers on this machine: what crosses between them, equal results on one and on two, and how they end."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_server import fake_server, read_caption
from safetensors.numpy import load_file
from tiny import PYTHON, ROOT, TINY, WORLD, messages, run, take_ctrl_c, tiny_data, tiny_mixture

import src.runtime.node_workers
from src.runtime.cluster import Cluster, held_port
from src.runtime.errors import InputError, RunStopped, Terminated
from src.runtime.launch import launch
from src.runtime.workers import Workers, check_job
from src.training.metrics import read_lines

UNFORKED = sys.executable  # where msrun's own children have to be the workers: which has died, and that none is left


@pytest.fixture(scope="module", autouse=True)
def forked():
    """The programs that `launch` starts here, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", PYTHON)
        yield


LAST = "demo-grpo/checkpoints/last"


def pipeline(goal, folder, *arguments, devices=1, **options):
    """Run a script's program on the tiny scenes."""
    command = ["-m", "src.commands.pipeline", goal, "--devices", str(devices), *TINY]
    return run(*command, f"data.root={tiny_data()}", f"output_root={folder}", *arguments, **options)


SUMS = {
    "size": 2,
    "sum": [2.0],
    "gathered": ["int32", [[row, 10 * row] for row in range(8)], "[[0.5], [0.5], [1.5], [nan]]"],
    "floats": [np.float32(0.1).item(), 0.0],
    "minus": [False, True],
    "count": [30_000],
    "any": [True, False],
    "seen": [1.0],
}


def test_two_runs_at_the_same_time_sum_gather_and_broadcast_each_on_its_own(tmp_path):
    code = "import sys; from pathlib import Path\n"
    code += "from src.runtime.cluster import Cluster; from src.runtime.launch import launch\n"
    code += "launch(['tests/worker_sums.py', sys.argv[1] + '/file'], Cluster(2), Path(sys.argv[1], 'logs'))"
    folders = [tmp_path / name for name in "ab"]
    runs = []
    for folder in folders:
        folder.mkdir()
        runs.append(subprocess.Popen([PYTHON, "-c", code, folder], cwd=WORLD, stdout=subprocess.PIPE, text=True))
    for process in runs:
        output = process.communicate()[0]
        assert process.returncode == 0
        assert json.loads(next(line for line in output.splitlines() if line.startswith("{"))) == SUMS


def test_no_run_takes_a_port_that_another_one_holds(monkeypatch):
    """Also while nobody listens there yet, and where both choose at the same moment."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(held_port(Cluster(2), 0)) for _ in range(50)]
        assert len(set(ports)) == 50
        for port in ports[:3]:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("", port))
            with pytest.raises(InputError, match=f"--master: port {port} cannot be used"):
                stack.enter_context(held_port(Cluster(2, port=port), 0))
        with socket.socket() as scheduler:  # MindSpore's
            scheduler.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            scheduler.bind(("", ports[0]))
            scheduler.listen()
    with held_port(Cluster(2, port=ports[0] - 2), 10) as port:
        assert port == ports[0]  # the third of eight, and free again


@pytest.mark.parametrize(
    "cluster, ports",
    [
        (Cluster(2, port=40_000), [40_000, 40_001, 40_007, 40_000]),
        (Cluster(2, 2, 1, "10.0.0.1", 40_000), [40_001, 40_002, 40_001, 40_002]),
    ],
)
def test_a_program_takes_another_port_than_the_one_before(cluster, ports):
    """With several nodes the first is that of the watch."""
    for number, port in zip((0, 1, 7, 8), ports):
        with held_port(cluster, number) as taken:
            assert taken == port


def test_workers_of_two_runs_do_not_train_together(monkeypatch):
    class Met(Workers):
        def sum(self, array):
            return array + np.array([[[0.0], [other]]], np.float32)  # as worker 1 adds

    monkeypatch.setenv("CAPTIONER_JOB", "fffffe99")
    monkeypatch.setenv("MS_SCHED_HOST", "10.0.0.1")
    monkeypatch.setenv("MS_SCHED_PORT", "8119")
    other = 0xFFFFFE
    check_job(Met(0, 2))
    other = 0xFFFFFF
    with pytest.raises(RunStopped, match=r"workers of two runs connected to the scheduler 10\.0\.0\.1:8119"):
        check_job(Met(0, 2))


def fill_caches(outputs, devices, *kill, data=None):
    """The feature files that worker_features.py leaves, and how often each worker called the encoder."""
    outputs.mkdir(exist_ok=True)
    program = ["tests/worker_features.py", str(data or tiny_data()), str(outputs), *kill]
    launch(program, Cluster(devices), outputs / "logs")
    calls = [int((outputs / f"calls_{rank}").read_text()) for rank in range(devices)]
    return {path.name: path.read_bytes() for path in (outputs / "cache").glob("*.npy")}, calls


@pytest.fixture(scope="module")
def filled_alone(tmp_path_factory):
    """The feature files of one worker."""
    files, calls = fill_caches(tmp_path_factory.mktemp("alone"), 1)
    assert len(files) == 2 and calls == [8 + 2]
    return files


def test_two_workers_fill_the_feature_caches_together(tmp_path, filled_alone):
    assert fill_caches(tmp_path, 2) == (filled_alone, [5, 5])


@pytest.mark.slow
def test_a_killed_filling_goes_on_with_another_number_of_workers(tmp_path, filled_alone, monkeypatch):
    monkeypatch.setattr(sys, "executable", UNFORKED)
    with pytest.raises(RunStopped, match=r"worker 1 ended without a message"):
        fill_caches(tmp_path, 2, "3")
    (done,) = (tmp_path / "cache").glob("*.done")
    marks = np.fromfile(done, np.uint8).reshape(8, 8).all(1)  # of each batch
    assert marks[[1, 3]].all() and not marks[[5, 7]].any()
    assert fill_caches(tmp_path, 1) == (filled_alone, [8 - marks.sum() + 2])


@pytest.mark.slow
def test_an_image_that_one_worker_cannot_read_ends_all(tmp_path, filled_alone, capfd):
    data = tmp_path / "data"
    shutil.copytree(tiny_data(), data)
    image = sorted((data / "images/train").iterdir())[25]  # of the fourth batch, the second worker's
    whole = image.read_bytes()
    image.write_bytes(whole[:100] + bytes(100) + whole[200:])  # its ends are whole
    with pytest.raises(SystemExit) as ended:
        fill_caches(tmp_path / "outputs", 2, data=data)
    assert ended.value.code == 2
    assert f"worker 1: error: {image}: " in capfd.readouterr().err
    image.write_bytes(whole)
    assert fill_caches(tmp_path / "outputs", 2, data=data)[0] == filled_alone


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The output folders of CE and GRPO on one worker and on two; GRPO starts from the same CE, has all rewards, whose
    questions and GDPO's last step must not depend on the workers, and is evaluated."""
    folders = [tmp_path_factory.mktemp(f"on{devices}") for devices in (1, 2)]
    best = folders[0] / "demo-ce/checkpoints/best"
    for devices, folder in enumerate(folders, start=1):
        batch = f"eval.batch_images={17 - devices}"  # 15 becomes 16 on two workers
        settings = [*TINY, f"data.root={tiny_data()}", f"output_root={folder}", batch, "rl.tokens=3", "eval.tokens=3"]
        with fake_server(read_caption) as server:
            mixture = [*tiny_mixture(), f"caprl.base_url={server.url}"]
            for command in (
                ["train.py", "--config", "configs/demo/ce.yaml"],
                ["train.py", "--config", "configs/demo/grpo.yaml", f"init_checkpoint={best}", *mixture],
                ["eval.py", "--config", "configs/demo/grpo.yaml", "--checkpoint", str(folder / LAST)],
            ):
                logs = folder / "logs" / "-".join(command[:3:2]).replace("/", "-")
                launch([*command[:3], *settings, *command[3:]], Cluster(devices), logs)
    return folders


@pytest.mark.parametrize("stage", ["ce", "grpo"])
def test_one_and_two_workers_agree(one_and_two, stage):
    """All lines of metrics.jsonl and the parameters within float error."""
    one, two = (folder / f"demo-{stage}" for folder in one_and_two)
    lines = [read_lines(folder / "metrics.jsonl") for folder in (one, two)]
    assert [len(list(folder.glob("events*"))) for folder in (one, two)] == [1, 1]
    assert len(lines[0]) == len(lines[1]) > 3
    for ours, theirs in zip(*lines):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"stage"}:
            if not key.startswith("time/"):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), (key, ours["step"])
    first, second = (load_file(folder / "checkpoints/last") for folder in (one, two))
    assert first.keys() == second.keys()
    # As one vector: Adam gives parameters whose gradient is rounding alone (biases of keys) steps of full length.
    names = [name for name in first if name.startswith("model.")]
    ours, theirs = (np.concatenate([file[name].ravel() for name in names]) for file in (first, second))
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(ours)


def test_evaluation_is_shared_and_counts_every_image_once(one_and_two):
    captions = [json.loads((folder / "demo-grpo/captions_test.json").read_text()) for folder in one_and_two]
    assert captions[0] == captions[1] and len({row["image_id"] for row in captions[1]}) == 16


def test_sizes_that_do_not_divide_are_refused(tmp_path):
    done = pipeline("ce", tmp_path, "ce.batch_images=31", devices=2)
    assert done.returncode == 2
    assert done.stderr == "error: ce.batch_images=31 must be a multiple of 2 workers: sizes are global\n"


@pytest.mark.parametrize(
    "flags, mend",
    [
        (["--devices", "0"], "--devices 0 must be at least 1"),
        (["--nodes", "2"], "--nodes 2 needs --master ADDRESS:PORT, the same on every node"),
        (["--nodes", "2", "--master", "127.0.1.1:8118"], "must be an address of node 0 that the other nodes reach"),
        (["--nodes", "2", "--master", "[::1]:8118"], "must be an address of node 0 that the other nodes reach"),
        (["--node-timeout", "0"], "--node-timeout 0 must be at least 1"),
        (["--nodes", "2", "--node-rank", "2"], "--node-rank 2 must be one of 0 to 1"),
        (["--master", "host"], "--master host must be ADDRESS:PORT"),
    ],
)
def test_bad_flags_are_refused(flags, mend):
    done = run("-m", "src.commands.pipeline", "ce", *flags)
    assert done.returncode == 2 and mend in done.stderr and done.stderr.count("\n") == 1


def test_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        done = run("-m", "src.commands.pipeline", "ce", "--devices", "2", "--master", f"127.0.0.1:{port}", *TINY,
                   f"output_root={tmp_path}")  # fmt: skip
    assert done.returncode == 2 and f"port {port} cannot be used" in done.stderr and done.stderr.count("\n") == 1


def test_the_first_error_of_a_worker_is_shown(tmp_path):
    done = pipeline("ce", tmp_path, "tokenizer.min_count=9999", devices=2)
    assert done.returncode == 2
    assert re.match(r"worker [01]: error: ", done.stderr) and "tokenizer.min_count=9999" in done.stderr
    assert "error: " not in done.stdout  # it is said once


@pytest.mark.parametrize("handler", ["lambda *signal: sys.exit(0)", "signal.SIG_DFL"])
def test_no_program_follows_one_that_was_signalled(handler, tmp_path):
    """Also where that had just done all, or had not begun."""
    ready, program = tmp_path / "ready", tmp_path / "program.py"
    program.write_text(
        f"import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, {handler})\n"
        f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"
    )

    def terminate():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Terminated, match="run the same command to resume"):
        launch([str(program)], Cluster(1), tmp_path)


def test_workers_that_do_not_stop_are_killed(tmp_path, monkeypatch):
    """Each has a session of its own, out of reach of a signal to that of msrun."""
    monkeypatch.setattr(src.runtime.node_workers, "_GRACE", 1)
    program = tmp_path / "program.py"
    program.write_text(
        f"import pathlib, os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from src.runtime.environment import on_signals, run_program\n"
        "def main():\n"
        "    on_signals(lambda: None)\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'ready_{{os.getpid()}}').touch()\n"
        "    time.sleep(100)\n"
        "run_program(main)\n"
    )

    def terminate():
        while len(list(tmp_path.glob("ready_*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Terminated, match="before the workers could save"):
        launch([str(program)], Cluster(2), tmp_path / "logs")
    pids = [json.loads(path.read_text())["pid"] for path in tmp_path.glob("logs/worker_*.json")]
    assert len(pids) == 2 and not any(map(src.runtime.node_workers.is_running, pids))


def start(folder, *arguments):
    """A long GRPO on two workers; returns when both have made an update."""
    command = [UNFORKED, "-m", "src.commands.pipeline", "ce", "--devices", "2", *TINY]
    command += [f"data.root={tiny_data()}", f"output_root={folder}", "ce.epochs=2000", *arguments]
    process = subprocess.Popen(command, cwd=WORLD, stderr=subprocess.PIPE, text=True, preexec_fn=take_ctrl_c)
    metrics = folder / "demo-ce/metrics.jsonl"
    for _ in range(3000):
        if process.poll() is not None or (metrics.exists() and len(read_lines(metrics)) > 3):
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError("no update in 300 s")


def worker_pid(folder, rank):
    return json.loads((folder / f"demo-ce/logs/train/worker_{rank}.json").read_text())["pid"]


def test_sigterm_saves_and_ends_all(tmp_path):
    process = start(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 4
    assert "run the same command to resume" in process.stderr.read()
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(worker_pid(tmp_path, rank), 0)


@pytest.mark.slow
def test_ctrl_c_ends_all_also_where_the_folder_of_the_run_is_lost(tmp_path):
    process = start(tmp_path)
    pids = [worker_pid(tmp_path, rank) for rank in (0, 1)]
    shutil.rmtree(tmp_path / "demo-ce")
    process.send_signal(signal.SIGINT)
    assert process.wait(200) in (2, 4) and len(messages(process.stderr.read())) == 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_sigterm_ends_workers_that_wait_for_each_other(tmp_path):
    """Worker 1 never comes."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, signal, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from src.config.load import load_config\nfrom src.runtime.environment import run_program\n"
        "from src.runtime.workers import join_workers\n"
        "def main():\n"
        "    if os.environ['MS_ROLE'] == 'MS_WORKER' and os.environ['RANK_ID'] == '1':\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        time.sleep(1000)\n"
        "    join_workers(load_config('configs/demo/ce.yaml', ['device=CPU']))\n"
        "run_program(main)\n"
    )

    def waits():
        """Whether worker 0 is in MindSpore's hands: a signal ends it at once."""
        with contextlib.suppress(OSError, ValueError):
            pid = json.loads((tmp_path / "logs/worker_0.json").read_text())["pid"]
            caught = int(Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0], 16)
            return not caught >> (signal.SIGTERM - 1) & 1
        return False

    def terminate():
        while not waits():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Terminated, match="before the workers could save"):
        launch([str(program)], Cluster(2), tmp_path / "logs")


@pytest.mark.slow
def test_a_lost_worker_ends_all(tmp_path):
    process = start(tmp_path)
    os.kill(worker_pid(tmp_path, 1), signal.SIGKILL)
    assert process.wait(200) == 3
    assert "worker 1 ended without a message" in process.stderr.read()
    with pytest.raises(ProcessLookupError):
        os.kill(worker_pid(tmp_path, 0), 0)
