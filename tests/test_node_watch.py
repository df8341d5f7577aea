"""The watch between the launchers of several nodes: in this process, with sockets and limits of seconds."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import WORLD, free_port

from src.runtime.cluster import Cluster
from src.runtime.errors import InputError, RunStopped
from src.runtime.node_link import Peer
from src.runtime.node_watch import NodeWatch

LIMIT = 1.0  # seconds: --node-timeout of these tests


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def start(port):
    """Starts the watch of node `rank`."""
    watches = []

    def start(rank, nodes=2, job="job", limit=LIMIT):
        watches.append(NodeWatch(Cluster(2, nodes, rank, "127.0.0.1", port, limit), [job], Path("/logs")))
        return watches[-1]

    yield start
    for watch in watches:
        watch.link.close()


def met(*watches):
    """Wait until all nodes know that all have come."""
    for watch in watches:
        assert watch.wait(lambda: False) is None
    return watches


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


def message(other):
    """The first message of node 0 to another node of its job."""
    return {"job": other._job, "node": 0, "finished": 0, "all": 0, "status": None, "message": ""}


class Node1:
    """A node that speaks the protocol by hand, with another."""

    def __init__(self, other, **fields):
        self.fields = message(other) | {"node": 1}
        self.socket = socket.create_connection(("127.0.0.1", other.cluster.port))
        self.say(**fields)

    def say(self, **fields):
        self.socket.sendall(json.dumps(self.fields | fields).encode() + b"\n")

    def hear(self):
        return json.loads(self.socket.makefile().readline())


def test_nodes_that_answer_are_in_no_trouble_however_long_their_workers_are_busy(start):
    nodes = met(*(start(rank, 3) for rank in range(3)))
    time.sleep(4 * LIMIT)
    assert [node.trouble() for node in nodes] == [None] * 3


def test_no_node_starts_a_program_before_all_have_come_to_it(start):
    nodes = [start(rank, 3) for rank in (0, 1)]
    assert nodes[0].wait(iter([False] * 5 + [True]).__next__) is None and nodes[0].link.all_finished() == -1
    nodes.append(start(2, 3))
    met(*nodes)
    for node in nodes[:2]:
        node.tell_finished()
    until(lambda: nodes[0].link.peers[1].finished == 1)
    assert [node.link.all_finished() for node in nodes[:2]] == [0, 0]
    nodes[2].tell_finished()
    met(*nodes)
    assert [node.link.all_finished() for node in nodes] == [1, 1, 1]


def test_a_half_open_connection_is_noticed_and_all_others_are_told(start, port, monkeypatch):
    """Node 1's socket stays open, and says nothing any more."""
    first, third = start(0, 3), start(2, 3)
    node1 = Node1(first)
    met(first, third)
    monkeypatch.setattr(time, "strftime", lambda form: "01:02:03")
    node1.say()
    lost = until(first.trouble)
    assert lost.status == 3 and not lost.announced
    assert lost.message == (
        "worker 2 on node 1 has not answered since 01:02:03: that node or the network between has failed "
        "(--node-timeout 1 s); what was saved is kept; run the same command to resume"
    )
    first.tell_failure(lost.status, f"error: {lost.message}")
    told = until(third.trouble)
    assert told == (3, f"node 0: error: {lost.message}", True)


def test_node_0_that_does_not_answer_is_noticed(start, port):
    """It is here by hand: it takes node 1, and then says nothing more."""
    with socket.create_server(("127.0.0.1", port)) as server:
        watch = start(1)
        connection = server.accept()[0]
        connection.sendall(json.dumps(message(watch)).encode() + b"\n")
        met(watch)
        assert "worker 0 on node 0 has not answered since " in until(watch.trouble).message


def test_a_killed_launcher_is_noticed_at_once(start, port):
    code = "import sys, time; from pathlib import Path\n"
    code += "from src.runtime.cluster import Cluster; from src.runtime.node_watch import NodeWatch\n"
    code += "cluster = Cluster(2, 2, 1, '127.0.0.1', int(sys.argv[1]), 1000.0)\n"
    code += "watch = NodeWatch(cluster, ['job'], Path('/logs'))\ntime.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code, str(port)], cwd=WORLD)
    first = start(0, limit=1000.0)
    met(first)
    assert first.trouble() is None
    process.kill()
    process.wait()
    lost = until(first.trouble)
    assert lost.status == 3 and lost.message.startswith("worker 2 on node 1 is gone since ")


def test_the_end_of_a_node_that_has_finished_is_no_trouble(start, port):
    first = start(0)
    node1 = Node1(first)
    met(first)
    node1.say(finished=1)
    node1.socket.close()
    until(lambda: first.link.peers[1].gone)
    assert first.trouble() is None
    first.tell_finished()  # and comes to a program that node 1 will not run
    assert "worker 2 on node 1 is gone since" in first.trouble().message


@pytest.mark.parametrize("status, stops_all", [(1, False), (2, False), (3, False), (4, True), (5, True)])
def test_a_failure_is_told_with_its_status_and_line(start, status, stops_all):
    nodes = met(start(0), start(1))
    nodes[1].tell_failure(status, "worker 3: error: no room\n\x1b[2J" + 2000 * "é")
    told = until(nodes[0].trouble)
    assert told.status == status and told.announced and told.stops_all == stops_all
    assert told.message.startswith("node 1: worker 3: error: no room  [2Jé") and len(told.message) == 600


def test_strangers_are_ignored(start, port):
    """Port scans, noise, other programs, another job, too much of anything: node 1 is still taken, and stays."""
    first = start(0)
    noise = [b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)), b"9" * 100_000, b"[" * 4000 + b"\n", b"null\n"]
    noise += [b'{"job": "job"}\n', b'{"job": "job", "node": 1, "finished": "1"}\n', b'{"job": ["job"]}\n']
    fields = message(first) | {"node": 1}
    noise += [json.dumps({"job": first._job}).encode() + b"\n"]
    wrong = [{"node": 0}, {"node": 2}, {"node": 1.5}, {"job": "other"}, {"status": "3"}, {"message": None}]
    noise += [json.dumps(fields | change).encode() + b"\n" for change in wrong]
    for data in noise:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(data)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    assert first.link.peers[1].finished == -1
    met(first, start(1))
    assert first.trouble() is None and len(first.link._connections) <= 66
    for stranger in idle:
        stranger.close()
    time.sleep(2 * LIMIT)
    assert first.trouble() is None


def test_another_job_and_a_second_node_of_the_same_number_are_refused(start, port, capsys, monkeypatch):
    first, _ = met(start(0), start(1))
    assert Node1(first, job="other").hear() == {"refused": "job"}
    with pytest.raises(InputError, match="--node-rank 1: node 1 of this command has joined already"):
        start(1).wait(lambda: False)
    monkeypatch.setattr("src.runtime.node_watch.CONNECT", 7)
    with pytest.raises(RunStopped, match=f"--master: 127.0.0.1:{port} belongs to another command.* .waited 7 s"):
        start(1, job="other").wait(lambda: False)
    assert capsys.readouterr().err.count("belongs to another command") == 1


def test_a_node_that_does_not_come_is_named(start, capsys, monkeypatch):
    monkeypatch.setattr("src.runtime.node_watch.CONNECT", 6)
    first, _ = start(0, 4), start(2, 4)
    with pytest.raises(RunStopped, match=r"waiting for node 1, node 3: start the same command on every node .waited 6"):
        first.wait(lambda: False)
    assert capsys.readouterr().err == "waiting for node 1, node 3: start the same command on every node\n"


def test_a_taken_port_is_refused(start, port):
    with socket.create_server(("", port)), pytest.raises(InputError, match=f"--master: port {port} cannot be used"):
        start(0)


def test_suspended_nodes_go_on(start, monkeypatch):
    """All at once, as virtual machines may be: to each it looks as if nobody had said anything for 100 s."""
    judged = []
    monkeypatch.setattr(Peer, "silent", property(lambda peer: False, lambda peer, silent: judged.append(silent)), False)
    met(start(0), start(1))
    real, shift = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + shift[0])
    judged.clear()
    shift[0] = 100.0
    until(lambda: len(judged) > 20)
    assert not any(judged)
