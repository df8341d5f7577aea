"""Kept graphs: found again by another process, never where anything that they hold has changed."""

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess

import pytest
from tiny import PYTHON, ROOT

from src.runtime.compile_cache import GRAPH_FILES, GraphCache

PROGRAM = """
import json, sys, time
import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from pathlib import Path
from src.runtime.compile_cache import GraphCache

folder, constant, weight, order = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
ms.set_context(mode=ms.GRAPH_MODE)

class First(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([weight], ms.float32))
        self.constant = Tensor([constant], ms.float32)
    def construct(self, x):
        return x * self.weight + self.constant

class Wider(First):
    def __init__(self):
        super().__init__()
        self.unused = Parameter(Tensor([0.0], ms.float32))
    def construct(self, x):
        return x * self.weight + self.constant + self.unused + 5

class Second(nn.Cell):
    def construct(self, x):
        return ops.sin(x)

graphs = GraphCache(folder, {"constant": constant})
kept = {"first": graphs.compile("first", First()), "second": graphs.compile("second", Second())}
weight += 1
kept["third"] = graphs.compile("first", First())  # another cell of the same name
kept["wider"] = graphs.compile("first", Wider())  # one of the same name with other parameters
x = Tensor([2.0], ms.float32)
values = {name: kept[name](x).asnumpy().item() for name in order.split(",")}
values["again"] = kept["first"](x).asnumpy().item()
print(json.dumps(values))
"""


@pytest.fixture
def start(tmp_path):
    def run(constant=1, weight=3, order="first,second"):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        command = [PYTHON, str(program), str(tmp_path / "graphs"), str(constant), str(weight), order]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.mindir")}
        return json.loads(done.stdout.splitlines()[-1]), files

    return run


def test_graphs_are_found_again_and_take_the_parameters_of_the_process(start):
    values, files = start()
    assert values["first"] == 7 and len(files) == 2
    values, again = start(weight=5)
    assert values["first"] == values["again"] == 11 and again == files


def test_another_constant_is_another_graph(start):
    _, files = start()
    values, more = start(constant=2)
    assert values["first"] == 8 and len(more) == 4 and files.items() <= more.items()


def test_other_parameters_are_another_graph(start):
    start(order="first")
    assert start(order="wider")[0] == {"wider": 4 * 2 + 1 + 5, "again": 7}


def test_another_order_takes_no_wrong_graph(start):
    expected, _ = start()
    values, _ = start(order="second,first")
    assert values == expected
    assert start(order="second")[0]["second"] == expected["second"]


def test_graphs_between_others_are_never_mistaken(start):
    """MindSpore numbers the graphs of a process: what was the second one here is the third one there."""
    expected, _ = start(order="first,third,second")
    assert (expected["first"], expected["third"]) == (7, 9)
    for order in ("first,second,third", "first,third,second", "first,second", "second,third,first"):
        values, _ = start(order=order)
        assert values == {name: expected[name] for name in [*order.split(","), "again"]}, order


def test_a_graph_that_another_process_is_writing_is_not_read(start, tmp_path):
    """Two runs that differ by their seed start at the same time, and share the folder."""
    expected, files = start(order="first")
    (claim,) = tmp_path.rglob("graph_0_0")
    for path in files:
        (tmp_path / path).chmod(0o600)
        (tmp_path / path).write_bytes(b"half written")
    with open(claim) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert start(order="first")[0] == expected
    assert all((tmp_path / path).read_bytes() == b"half written" for path in files)


def test_a_damaged_graph_is_compiled_anew(start, tmp_path):
    expected, files = start()
    for path in files:
        (tmp_path / path).chmod(0o600)
        (tmp_path / path).write_bytes(b"damaged")
    assert start()[0] == expected


def test_every_cell_of_a_graph_is_in_the_files_that_name_it():
    """And whatever of src those files import, but for configuration, data types and the runtime."""
    files = {file for pattern in GRAPH_FILES for file in (ROOT / "src").glob(pattern)}
    cells = {
        path
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "construct"
    }
    without_cache = {
        ROOT / "src" / name
        for name in ("runtime/workers.py", "export/mindir.py", "training/zones.py", "bench/phases.py")
    }
    assert cells - files <= without_cache and len(cells & files) > 8
    for file in files:
        for module in re.findall(r"^from src\.([\w.]+) import", file.read_text(), re.MULTILINE):
            path = ROOT / "src" / module.replace(".", "/")
            known = path.is_dir() and path.name in ("models", "decoding", "losses")  # wholly among them
            without_constants = ("config.schema", "data.words", "runtime")
            known = known or path.with_suffix(".py") in files or module.startswith(without_constants)
            assert known, f"{file}: {module}"


def test_editing_a_report_compiles_nothing_again(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("src.runtime.compile_cache.ROOT", tmp_path)
    keys = [GraphCache(tmp_path, {}).made_from]
    for name in ("evaluation/report.py", "losses/grpo.py", "config/kinds.py", "data/tokenizer.py"):
        with open(tmp_path / "src" / name, "a") as file:
            file.write("# edited\n")
        keys.append(GraphCache(tmp_path, {}).made_from)
    assert keys[0] == keys[1] and len({str(key) for key in keys[1:]}) == 4
