"""Choice of the device: what is taken, what is refused, and what is said about it."""

import pytest
from tiny import run

PROGRAM = """
from src.config.load import load_config
from src.runtime.device import setup_device
from src.runtime.environment import prepare_environment, run_program

def main():
    import mindspore as ms
    target = setup_device(load_config("configs/demo/ce.yaml", SETTINGS))
    print(target, ms.get_context("jit_config"), ms.get_context("deterministic"))

prepare_environment(convolutions=False)
run_program(main)
"""


def setup(*settings):
    return run("-c", PROGRAM.replace("SETTINGS", repr(list(settings))))


def test_auto_says_what_it_takes_and_why():
    done = setup("device=auto")
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("CPU"):
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("environment: device=auto takes CPU (no Ascend: ") and "; no GPU: " in done.stderr


def test_settings_reach_mindspore():
    done = setup("device=CPU", "jit_level=O1", "deterministic=true")
    assert done.stdout == "CPU {'jit_level': 'O1'} ON\n" and done.stderr == ""


def test_bfloat16_is_refused_where_mindspore_has_no_products_of_it():
    done = setup("device=CPU", "precision=bfloat16")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: precision=bfloat16: ") and "float16" in done.stderr


@pytest.mark.parametrize("target, reason", [("Ascend", "libge_runner.so"), ("GPU", "libcuda.so")])
def test_a_missing_device_is_refused_with_the_reason(target, reason):
    done = setup(f"device={target}")
    if done.returncode == 0:
        pytest.skip(f"this machine has {target}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: device={target}: ") and reason in done.stderr
