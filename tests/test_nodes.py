"""How the launchers of several nodes end together; each is a process of its own on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import WORLD, free_port

from src.runtime.node_workers import is_running

LIMIT = 2  # seconds: --node-timeout


@pytest.fixture
def start(tmp_path):
    """Starts nodes with the same actions; returns their processes once all workers are busy."""
    started = []

    def start(*actions, nodes=2, limit=LIMIT):
        port = free_port()
        for rank in range(nodes):
            command = [sys.executable, "tests/node.py", str(rank), str(nodes), str(port), str(limit), str(tmp_path)]
            process = subprocess.Popen([*command, *actions], cwd=WORLD, stderr=subprocess.PIPE, text=True)
            started.append(process)
        while not all((tmp_path / f"busy_{rank}").exists() for rank in range(nodes)):
            assert [process.poll() for process in started] == nodes * [None]
            time.sleep(0.05)
        return started

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()


def ends(processes):
    """Their exit statuses, and what they print on stderr."""
    lines = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], lines


def worker(tmp_path, rank):
    return json.loads((tmp_path / f"worker_{rank}.json").read_text())["pid"]


def test_busy_and_stopped_workers_end_nothing(start, tmp_path):
    """Worker 0 is busy for much longer than the limit, alone, while node 1 waits for it with the next program; then
    worker 1 is stopped, as by a debugger."""
    nodes = start("sleep:0=6,1=0", "sleep:0=0,1=2")
    (tmp_path / "busy_1").unlink()
    while not (tmp_path / "busy_1").exists():
        assert [node.poll() for node in nodes] == [None, None]
        time.sleep(0.05)
    os.kill(worker(tmp_path, 1), signal.SIGSTOP)
    time.sleep(2.5 * LIMIT)
    assert nodes[1].poll() is None
    os.kill(worker(tmp_path, 1), signal.SIGCONT)
    assert ends(nodes) == ([0, 0], ["", ""])


def test_a_killed_worker_ends_all_nodes(start, tmp_path):
    nodes = start("sleep:0=1000,1=1000,2=1000", nodes=3)
    pids = [worker(tmp_path, rank) for rank in range(3)]
    os.kill(pids[1], signal.SIGKILL)
    statuses, lines = ends(nodes)
    assert statuses == [3, 3, 3]
    assert lines[1].startswith("error: worker 1 ended without a message (killed, or out of memory?), or msrun did ")
    assert lines[0] == lines[2] == "node 1: " + lines[1]
    assert not any(map(is_running, pids))


def test_a_killed_node_ends_the_others(start, tmp_path):
    nodes = start("sleep:0=1000,1=1000", limit=1000)
    pids = [worker(tmp_path, rank) for rank in range(2)]
    nodes[1].kill()
    statuses, lines = ends(nodes)
    assert statuses == [3, -signal.SIGKILL]
    assert lines[0].startswith("error: worker 1 on node 1 is gone since ") and lines[0].count("\n") == 1
    assert not any(map(is_running, pids))


def test_a_node_that_no_longer_answers_ends_the_others_and_itself(start, tmp_path):
    """Its launcher is stopped: as if the network were cut, and back when all is over."""
    nodes = start("sleep:0=1000,1=1000")
    pids = [worker(tmp_path, rank) for rank in range(2)]
    nodes[1].send_signal(signal.SIGSTOP)
    nodes[0].wait()
    nodes[1].send_signal(signal.SIGCONT)
    statuses, lines = ends(nodes)
    assert statuses == [3, 3]
    assert lines[0].startswith("error: worker 1 on node 1 has not answered since ")
    assert lines[1] == "node 0: " + lines[0]
    assert not any(map(is_running, pids))


def test_sigterm_to_one_node_ends_all_with_status_4(start):
    nodes = start("sleep:0=1000,1=1000")
    nodes[1].send_signal(signal.SIGTERM)
    statuses, lines = ends(nodes)
    assert statuses == [4, 4]
    for rank, line in enumerate(lines):
        assert line.startswith(f"worker {rank}: error: ended by SIGTERM or Ctrl-C;") and line.count("\n") == 1


def test_bad_input_of_one_node_is_that_of_all(start):
    nodes = start("refuse:1")
    statuses, lines = ends(nodes)
    assert statuses == [2, 2] and lines[1].startswith("worker 1: error: no such file (logs: ")
    assert lines[0] == "node 1: " + lines[1]


def test_sigterm_ends_a_node_that_waits_for_the_others(tmp_path):
    command = [sys.executable, "tests/node.py", "1", "2", "9", "3", str(tmp_path), "sleep:0=0,1=0"]
    process = subprocess.Popen(command, cwd=WORLD, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "waiting for node 0: start the same command on every node\n"
    process.terminate()
    assert process.wait() == 4 and "before the other nodes joined; run the same command again" in process.stderr.read()
