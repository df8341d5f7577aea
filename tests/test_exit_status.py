"""How programs end when they are stopped, stop themselves, or are given what they cannot use."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import PYTHON, TINY, WORLD, messages, run, take_ctrl_c, tiny_data


@pytest.mark.parametrize("by", ["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_ends_with_status_4(by, tmp_path):
    command = [
        "-m",
        "src.commands.pipeline",
        "ce",
        *TINY,
        "ce.epochs=500",
        f"output_root={tmp_path}",
        f"data.root={tiny_data()}",
    ]
    process = subprocess.Popen(
        [PYTHON, *command], cwd=WORLD, stderr=-1, text=True, preexec_fn=take_ctrl_c, start_new_session=True
    )
    metrics = tmp_path / "demo-ce/metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or not metrics.read_text()):
        time.sleep(0.05)
    if by == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:  # a terminal sends it to all of the group
        os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 4 and "error: ended by SIGTERM or Ctrl-C at step" in errors and "last" in errors, (
        errors
    )


def test_a_loss_that_is_not_finite_stops_with_status_3(tmp_path):
    settings = [
        *TINY,
        f"output_root={tmp_path}",
        f"data.root={tiny_data()}",
        "ce.optimizer.lr=1e30",
        "ce.optimizer.grad_clip=1e30",
    ]
    result = run("train.py", "--config", "configs/demo/ce.yaml", *settings)
    assert result.returncode == 3 and "not finite" in result.stderr and "checkpoints/last" in result.stderr, (
        result.stderr
    )


@pytest.mark.parametrize(
    "settings, words",
    [
        (["output_root=/proc/none"], ["/proc/none", "output_root"]),
        (["data.root=/absent", "data.dataset=mine"], ["data.root=/absent"]),
        (["rl.goup_size=3"], ["rl.goup_size", "rl.group_size"]),
        (["device=Ascend"], ["device=Ascend"]),
    ],
)
def test_bad_settings_are_one_line_and_status_2(tmp_path, settings, words):
    common = [*TINY, f"output_root={tmp_path}", f"data.root={tiny_data()}"]
    result = run("train.py", "--config", "configs/demo/ce.yaml", *common, *settings)
    errors = messages(result.stderr)
    assert result.returncode == 2 and len(errors) == 1 and all(word in errors[0] for word in words), result.stderr


def test_a_worker_whose_log_is_on_a_full_disk_still_tells_why_it_ended(tmp_path):
    """/dev/full has no room for the last line; the report has had its room since the start."""
    program = "from src.runtime.environment import run_program; from src.runtime.errors import InputError\ndef main():"
    script = f"{program}\n    raise InputError('no room')\nrun_program(main)"
    environment = os.environ | {"CAPTIONER_WORKER_FOLDER": str(tmp_path), "RANK_ID": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], cwd=WORLD, stderr=full, env=environment)
    report = json.loads((tmp_path / "worker_1.json").read_text())
    assert done.returncode == report["status"] == 2 and report["message"] == "error: no room"


def test_rl_without_a_ce_checkpoint_says_what_to_run(tmp_path):
    result = run("train.py", "--config", "configs/demo/grpo.yaml", *TINY, f"output_root={tmp_path}")
    assert result.returncode == 2 and "configs/demo/ce.yaml" in result.stderr


def test_the_time_limit_saves_and_ends_with_status_5(tmp_path):
    settings = [*TINY, f"output_root={tmp_path}", f"data.root={tiny_data()}", "stop_after_minutes=0.001"]
    result = run("-m", "src.commands.pipeline", "ce", *settings)
    assert result.returncode == 5 and "stop_after_minutes=0.001 is reached at step 1;" in result.stderr, result.stderr
    assert (tmp_path / "demo-ce/checkpoints/last").is_file()
    settings[-1] = "stop_after_minutes=0"  # the run goes on
    result = run("train.py", "--config", "configs/demo/ce.yaml", *settings)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("program", [["eval.py"], ["train.py"], ["-m", "src.export"]])
def test_a_python_without_the_packages_is_told_of_the_environment(program):
    result = run("-S", *program, "--help")  # -S: without site-packages
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and ".venv/bin/activate" in result.stderr
