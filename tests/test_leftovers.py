"""Variables of another cluster job in the environment, and clusters that somebody has really started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import free_port, run

import src.runtime.leftovers
from src.runtime.environment import run_program
from src.runtime.errors import InputError
from src.runtime.leftovers import CLUSTER_VARIABLES, check_cluster_variables


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, where none of a cluster is set."""
    for name in (*CLUSTER_VARIABLES, "MS_SIMULATION_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(src.runtime.leftovers, "_SECONDS", 1)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def worker(port, **changes):
    """What a worker of one finds in its environment."""
    usual = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "1", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port)}
    return usual | changes


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "::1", "no-such-host.invalid", "a" * 70])
def test_a_worker_without_a_scheduler_names_its_variables(environment, host):
    port = free_port()
    environment(**worker(port, MS_SCHED_HOST=host, RANK_ID="3"))
    with pytest.raises(InputError) as refused:
        check_cluster_variables()
    assert str(refused.value) == (
        f"MS_ROLE=MS_WORKER, MS_WORKER_NUM=1, MS_SCHED_HOST={host}, MS_SCHED_PORT={port}, RANK_ID=3 are set, but no "
        f"scheduler answers at {host}:{port}; unset them (unset MS_ROLE MS_WORKER_NUM MS_SCHED_HOST MS_SCHED_PORT "
        "RANK_ID), or start all workers and their scheduler with msrun"
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"MS_ROLE": "MS_SCHED"}, "are set, but no worker of this scheduler runs on this machine"),
        ({"MS_ROLE": "MS_PSERVER"}, "MS_ROLE=MS_PSERVER, MS_WORKER_NUM=1,"),
        ({"MS_ROLE": "worker"}, "MS_ROLE is missing or unusable"),
        ({"MS_WORKER_NUM": "two"}, "MS_WORKER_NUM is missing or unusable"),
        ({"MS_WORKER_NUM": "0"}, "MS_WORKER_NUM=0"),
        ({"MS_SCHED_PORT": "70000"}, "MS_SCHED_PORT is missing or unusable"),
        ({"MS_SCHED_PORT": "²"}, "MS_SCHED_PORT is missing or unusable"),
        ({"MS_SCHED_HOST": ""}, "MS_SCHED_HOST is missing or unusable"),
        ({"MS_SIMULATION_LEVEL": "1"}, "MS_SIMULATION_LEVEL=1: MindSpore would return only zeros; unset it"),
    ],
)
def test_what_is_no_cluster_of_workers_is_refused(environment, server, changes, words):
    environment(**worker(server.getsockname()[1], **changes))
    with pytest.raises(InputError) as refused:
        check_cluster_variables()
    assert words in str(refused.value)


@pytest.mark.parametrize("missing", ["MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT"])
def test_incomplete_variables_are_refused(environment, server, missing, monkeypatch):
    environment(**worker(server.getsockname()[1]))
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"unset them .unset MS_ROLE .*is missing or unusable|{missing}"):
        check_cluster_variables()


def test_variables_without_a_role_are_removed_and_named(environment, capsys):
    environment(RANK_ID="3", RANK_SIZE="8", DEVICE_ID="5", OMPI_COMM_WORLD_LOCAL_RANK="5", MS_ROLE="", PMIX_RANK="1")
    check_cluster_variables()
    names = "MS_ROLE RANK_ID RANK_SIZE DEVICE_ID OMPI_COMM_WORLD_LOCAL_RANK"
    assert capsys.readouterr().err == f"environment: ignored {names}, left by another job\n"
    assert not set(names.split()) & set(os.environ) and os.environ["PMIX_RANK"] == "1"  # srun's, and harmless
    check_cluster_variables()
    assert capsys.readouterr().err == ""  # once for all programs of a command


def test_a_scheduler_that_answers_is_joined(environment, server, capsys):
    environment(**worker(server.getsockname()[1]))
    check_cluster_variables()
    assert capsys.readouterr().err.startswith("environment: joining a cluster, as MS_ROLE=MS_WORKER, MS_WORKER_NUM=1,")
    assert os.environ["MS_ROLE"] == "MS_WORKER"


@pytest.mark.parametrize("role, other", [("MS_WORKER", "MS_SCHED"), ("MS_SCHED", "MS_WORKER")])
def test_a_cluster_that_is_being_started_here_is_waited_for(environment, role, other):
    """The other process has not got as far as to listen, or to connect."""
    variables = worker(free_port(), MS_ROLE=role)
    environment(**variables)
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    partner = subprocess.Popen(command, env=os.environ | {"MS_ROLE": other})
    try:
        check_cluster_variables()
    finally:
        partner.kill()
        partner.wait()


def test_what_msrun_has_started_is_a_worker_at_once(tmp_path, environment):
    """Its scheduler may take minutes to import MindSpore from a busy disk."""
    script = tmp_path / "msrun"
    script.write_text("import subprocess, sys\nsys.exit(subprocess.run(sys.argv[1:]).returncode)")
    code = "from src.runtime.leftovers import check_cluster_variables; check_cluster_variables()"
    done = run(str(script), sys.executable, "-c", code, python=sys.executable, env=os.environ | worker(free_port()))
    assert (done.returncode, done.stderr) == (0, "")


def test_every_program_checks_them(environment, capfd):
    environment(**worker(free_port()))
    with pytest.raises(SystemExit) as stop:
        run_program(lambda: pytest.fail("it has begun"))
    assert stop.value.code == 2 and capfd.readouterr().err.startswith("error: MS_ROLE=MS_WORKER, ")
    texts = {path: path.read_text() for path in Path(src.runtime.leftovers.__file__).parents[1].rglob("*.py")}
    programs = {path: text for path, text in texts.items() if "__main__" in text and "def main(" in text}
    without = [path for path, text in programs.items() if "run_program(main)" not in text]
    assert len(programs) > 8 and not without


def test_the_launcher_names_them_too():
    variables = worker(free_port(), MS_ROLE="MS_PSERVER")
    done = run("-m", "src.commands.pipeline", "grpo", "--devices", "2", env=os.environ | variables)
    assert done.returncode == 2 and done.stderr.startswith("error: MS_ROLE=MS_PSERVER, ")
    assert done.stderr.count("\n") == 1
