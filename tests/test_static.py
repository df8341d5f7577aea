"""What is checked without running the code: names and likely bugs, format, and the types of every function."""

import subprocess
import sys

import pytest
from tiny import ROOT


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_the_code_passes(command):
    """With the settings of pyproject.toml, where each thing left out has its reason."""
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
