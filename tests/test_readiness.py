"""Readiness for Ascend: planted violations are found, memory is counted, shipped configurations pass."""

from pathlib import Path

import mindspore
import pytest
from tiny import ROOT, run

from src.readiness.graphs import Node, read_graph
from src.readiness.memory import peak_bytes
from src.readiness.operators import REGISTERED, documented_platforms, violations

SMALL = ["eval.batch_images=2", "eval.tokens=3", "ce.batch_images=2", "ce.tokens=3", "grpo.rollout_images=2"]
SMALL += ["grpo.sample_images=2", "grpo.update_images=2", "grpo.tokens=3", "ce.micro_batches=1", "grpo.micro_batches=1"]


def test_planted_violations_are_found():
    done = run("tests/planted_cells.py")
    assert done.returncode == 0, done.stderr
    random, dynamic, wide, condition = done.stdout.splitlines()
    assert "Bernoulli is documented for GPU CPU alone" in random
    assert "NonZero has an output of dynamic shape (-1, 2)" in dynamic
    assert "Argmax has an output of type Int64" in wide
    assert "Switch waits for the device" in condition


def test_documentation_is_found_directly_and_by_reference():
    assert documented_platforms("SearchSorted") == documented_platforms("Gather") == "Ascend GPU CPU"
    assert documented_platforms("Bernoulli") == "GPU CPU"
    assert documented_platforms("NoSuchOperator") is None
    assert violations({0: Node("NoSuchOperator", (), ())}) == ["NoSuchOperator has no documented platforms"]


def test_what_is_not_documented_is_registered():
    folder = Path(mindspore.__file__).parent / "lib/plugin"
    files = [folder / "libmindspore_ops_ascend.so", folder / "ascend/libmindspore_ascend_res_manager.so"]
    if not all(file.exists() for file in files):
        pytest.skip("this MindSpore has no Ascend plugin")
    names = {line for file in files for line in file.read_bytes().split(b"\\0")}
    symbols = b"\\0".join(names)
    missing = [operator for operator, name in REGISTERED.items() if name.encode() not in symbols]
    assert missing == []


GRAPH = """
  %0(CNode_1$x) = PrimFunc_MatMul(%para1_x, %para2_w, Bool(0), Bool(1)) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (4, 8)>, <Ref[Tensor[Float32]], (16, 8)>) -> (<Tensor[Float32], (4, 16)>)
      # Fullname with scope: (Default/MatMul-op0)
  %1(CNode_2) = PrimFunc_Reshape(%0, (I64(64)))
      : (<Tensor[Float32], (4, 16)>, <Tuple[Int64*1], TupleShape(NoShape)>) -> (<Tensor[Float32], (64)>)
  %2(CNode_3) = TopK(%1, I64(2)) {instance name: topk} primitive_attrs: {sorted: Bool(1)}
      : (<Tensor[Float32], (64)>, <Int64, NoShape>) -> (<Tuple[Tensor[Float32],Tensor[Int32]], TupleShape((2), (2))>)
"""


def test_graphs_are_read():
    graph = read_graph(GRAPH)
    assert graph[0] == Node("MatMul", (), (("Float32", (4, 16)),))
    assert graph[1] == Node("Reshape", (0,), (("Float32", (64,)),))
    assert graph[2].operator == "TopK" and graph[2].reads == (1,)


def test_hand_worked_memory():
    """100 and 50 floats are alive together, then 50 and 30; a view keeps what it shows; a Bool takes one byte."""
    floats = {
        0: Node("Exp", (), (("Float32", (100,)),)),
        1: Node("Exp", (0,), (("Float32", (50,)),)),
        2: Node("Exp", (1,), (("Float32", (30,)),)),
    }
    assert peak_bytes(floats) == 4 * 150
    viewed = {
        0: Node("Exp", (), (("Float32", (10, 10)),)),
        1: Node("Reshape", (0,), (("Float32", (100,)),)),
        2: Node("Exp", (), (("Float16", (50,)),)),
        3: Node("Add", (1, 2), (("Bool", (7,)),)),
    }
    assert peak_bytes(viewed) == 4 * 100 + 2 * 50 + 7


FAST = ["demo/ce.yaml", "demo/scst.yaml", "coco/grpo.yaml"]


def check(config, *settings):
    done = run("-m", "src.readiness", "--config", f"configs/{config}", "device=CPU", *SMALL, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"configs/{config}: ready for Ascend\n")
    return done.stdout


@pytest.mark.parametrize("config", FAST)
def test_shipped_configurations_pass(config):
    assert "fits 32 GB" in check(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        str(file.relative_to(ROOT / "configs"))
        for file in sorted(ROOT.glob("configs/*/*.yaml"))
        if file.stem != "comparison"
    ],
)
def test_every_shipped_configuration_passes(config):
    check(config)


@pytest.mark.slow
def test_every_option_passes():
    check("coco/grpo.yaml", "encoder.trainable=true", "grpo.top_k=5", "eval.beams=2", "eval.block_trigrams=true")
    check("coco/ce.yaml", "ce.micro_batches=2", "ce.label_smoothing=0.1")
