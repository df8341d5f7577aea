"""Two nodes in two network namespaces, whose network is cut in the middle of GRPO."""

import contextlib
import os
import subprocess
import time

import pytest
from tiny import TINY, WORLD, messages, tiny_data

from src.training.metrics import read_lines

pytestmark = pytest.mark.slow
LIMIT = 20  # seconds: --node-timeout


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces():
    """Two, each with one end of a cable: 10.231.77.1 and 10.231.77.2."""
    names = [f"captioner-{os.getpid()}-{rank}" for rank in (0, 1)]
    ends = [f"cap{os.getpid()}{end}" for end in "ab"]
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
        for rank, (name, end) in enumerate(zip(names, ends), start=1):
            ip("-n", name, "address", "add", f"10.231.77.{rank}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(name, end) for name, end in zip(names, ends)]


def start(namespaces, output_root):
    """The same command on both nodes."""
    settings = [*TINY, "rl.rollouts=20", "ce.epochs=1", "eval.every=5"]
    settings += [f"data.root={tiny_data()}", f"output_root={output_root}"]
    flags = ["--devices", "1", "--nodes", "2", "--master", "10.231.77.1:8118", "--node-timeout", str(LIMIT)]
    for rank, (name, _) in enumerate(namespaces):
        command = ["ip", "netns", "exec", name, "bash", "scripts/run_grpo.sh", *flags, "--node-rank", str(rank)]
        yield subprocess.Popen([*command, *settings], cwd=WORLD, stdout=-1, stderr=-1, text=True)


def test_a_cut_network_ends_both_nodes_and_the_same_command_resumes(namespaces, tmp_path):
    nodes = list(start(namespaces, tmp_path))
    metrics = tmp_path / "demo-grpo/metrics.jsonl"
    while not (metrics.exists() and len(read_lines(metrics)) > 3):
        time.sleep(0.1)
        assert [node.poll() for node in nodes] == [None, None]
    cut = time.monotonic()
    ip("-n", namespaces[1][0], "link", "set", namespaces[1][1], "down")
    for rank, node in enumerate(nodes):
        errors = messages(node.communicate()[1])
        print(f"node {rank} ended {time.monotonic() - cut:.0f} s after the cut: {errors}")
        assert node.returncode == 3 and len(errors) == 1
        other = 1 - rank
        assert errors[0].startswith(f"error: worker {other} on node {other} has not answered since ")
        assert errors[0].endswith("run the same command to resume")
    assert not (tmp_path / "demo-grpo/completed").exists()
    ip("-n", namespaces[1][0], "link", "set", namespaces[1][1], "up")
    for node in list(start(namespaces, tmp_path)):
        output, errors = node.communicate()
        assert node.returncode == 0, errors
    assert (tmp_path / "demo-grpo/report.md").is_file() and (tmp_path / "demo-grpo/completed").exists()
