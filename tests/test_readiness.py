"""Readiness for Ascend: planted violations are found, memory is counted, devices compared, configurations pass."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from tiny import ROOT, run
from tiny_models import tiny_folder

from src.config.load import load_config
from src.readiness.compare import change_differences, compare_on_cpu, output_differences, record_zone
from src.readiness.compiled_graphs import Node, peak_bytes, read_graph, zones
from src.readiness.operators import REGISTERED, documented_platforms, violations

SMALL = ["eval.batch_images=2", "eval.tokens=3", "ce.batch_images=2", "ce.tokens=3", "rl.rollout_images=2"]
SMALL += ["rl.sample_images=2", "rl.update_images=2", "rl.tokens=3", "ce.micro_batches=1", "rl.micro_batches=1"]


def test_planted_violations_are_found():
    done = run("tests/planted_cells.py")
    assert done.returncode == 0, done.stderr
    random, dynamic, wide, condition = done.stdout.splitlines()
    assert "Bernoulli is documented only for GPU CPU" in random
    assert "NonZero has an output of dynamic shape (-1, 2)" in dynamic
    assert "Argmax has an output of type Int64" in wide
    assert "Switch waits for the device" in condition


def test_documentation_is_found_directly_and_by_reference():
    assert documented_platforms("SearchSorted") == documented_platforms("Gather") == "Ascend GPU CPU"
    assert documented_platforms("Bernoulli") == "GPU CPU"
    assert documented_platforms("NoSuchOperator") is None
    assert violations({0: Node("NoSuchOperator", (), ())}) == ["NoSuchOperator has no documented platforms"]


def test_what_is_not_documented_is_registered():
    folder = Path(ms.__file__).parent / "lib/plugin"
    files = [folder / "libmindspore_ops_ascend.so", folder / "ascend/libmindspore_ascend_res_manager.so"]
    if not all(file.exists() for file in files):
        pytest.skip("this MindSpore has no Ascend plugin")
    symbols = b"".join(file.read_bytes() for file in files)
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


def test_hand_worked_differences_of_tokens():
    """Row 0 differs at its second token, and its third no longer counts, though it is equal; 4 of 6 tokens agree."""
    expected = [np.array([[5, 6, 7], [5, 6, 7]]), np.ones((2, 3)), np.zeros((2, 3))]
    got = [np.array([[5, 9, 7], [5, 6, 7]]), np.ones((2, 3)), np.array([[0.0, 5.0, 5.0], [0.3, 0.0, 0.0]])]
    found = dict(output_differences("sampler", got, expected))
    assert found == {"tokens": pytest.approx(2 / 6), "log-probs": pytest.approx((0.3**2 / 4) ** 0.5)}
    sequences = [np.array([1.0, 2.0]), np.array([9.0, 2.5])]  # one log-prob a row: that of the row that agrees counts
    found = dict(output_differences("beams", [*got[:2], sequences[1]], [*expected[:2], sequences[0]]))
    assert found["log-probs"] == pytest.approx(0.5)
    greedy = list(output_differences("sampler", [*expected, got[0][:1]], [*expected, expected[0][:1]]))  # of one image
    assert greedy == [("tokens", 0.0), ("log-probs", 0.0), ("tokens", pytest.approx(2 / 3))]


def test_hand_worked_differences_of_numbers():
    """(3, 4) against (3, 4.5): 0.5 of a norm of 5. A loss of 2 that is 2.1: 5 %; what is near 0 counts as 0.01."""
    pair = ([np.array([3.0, 4.5])], [np.array([3.0, 4.0])])
    assert dict(output_differences("encoder", *pair)) == {"features": pytest.approx(0.1)}
    assert dict(output_differences("reference", *pair)) == {"log-probs": pytest.approx(0.5 / 2**0.5)}
    values = ([np.array([2.1, 0.0002])], [np.array([2.0, 0.0])])
    assert dict(output_differences("update", *values)) == {"values": pytest.approx(0.05)}


def test_hand_worked_differences_of_changes():
    """Weights change by (0, 3) and (4): a norm of 5, of which (0, 0) and (1) are wrong. Each kind counts by itself."""
    expected = {
        "after.a": np.array([1.0, 4.0]),
        "after.b": np.array([5.0]),
        "after.optimizer.adam_m.a": np.array([2.0]),
    }
    expected |= {"after.optimizer.global_step": np.array([1]), "after.frozen": np.array([7.0])}
    before = {"a": [1.0, 1.0], "b": [1.0], "optimizer.adam_m.a": [0.0], "optimizer.global_step": [0], "frozen": [7.0]}
    recorded = expected | {f"before.{name}": np.array(value) for name, value in before.items()}
    recorded |= {"after.b": np.array([6.0]), "after.optimizer.adam_m.a": np.array([1.0])}
    found = {"weights": pytest.approx(0.2), "moments": pytest.approx(0.5), "step counter": 0.0}
    assert dict(change_differences(recorded, expected)) == found


def test_recorded_zones_are_repeated_and_errors_found(tmp_path, capfd):
    """This process takes the part of the device. What it recorded of three zones is changed, the others must agree."""
    settings = [*SMALL, "device=CPU", "mode=pynative", "rl.micro_batches=2", "eval.beams=2"]
    ms.set_seed(5)  # not the configuration's: parameters come from the files
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for zone in zones(load_config("configs/demo/grpo.yaml", settings), 50):
        record_zone(zone, tmp_path)
    ms.set_context(mode=ms.GRAPH_MODE)
    damaged = {"encoder": ("output.0", 1.01), "reference": ("output.0", np.nan), "update": ("after.", 1.001)}
    for zone, (name, factor) in damaged.items():
        file = tmp_path / f"{zone}.npz"
        arrays = dict(np.load(file))
        np.savez(file, **{key: value * factor if key.startswith(name) else value for key, value in arrays.items()})
    assert not compare_on_cpu(tmp_path, "Ascend", 50, "configs/demo/grpo.yaml", settings)
    lines = capfd.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line.startswith("|")]
    names = ["encoder", "greedy", "beams", "sampler", "reference", "gradient", "update"]
    assert list(dict.fromkeys(row[0] for row in table)) == names
    beyond = [(zone, what) for zone, what, difference, float32, _ in table if not float(difference) <= float(float32)]
    assert beyond == [
        ("encoder", "features"),
        ("reference", "log-probs"),
        ("update", "step counter"),
        ("update", "weights"),
        ("update", "moments"),
    ]
    found = [line.removeprefix("blocking: ").split(" differ")[0] for line in lines if line.startswith("blocking: ")]
    assert found == [f"{zone}: {what}" for zone, what in beyond[:-1]]  # rounded products may be 0.1 % off


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
        if "comparison" not in file.stem
    ],
)
def test_every_shipped_configuration_passes(config, tmp_path):
    own = [f"policy.path={tiny_folder('llama', tmp_path / 'llama')}"] if config.startswith("smollm2") else []
    check(config, *own)


def test_graphs_hold_the_forms_of_ascend(tmp_path):
    """In float16 with heads of 16: flash attention in the loss, plain layer norm and reductions everywhere."""
    done = run("tests/operators_of_zones.py", str(tmp_path), "precision=float16", "decoder.layers=3")
    assert done.returncode == 0, done.stderr
    zones = json.loads(done.stdout.splitlines()[-1])
    for name in ("reference", "update"):
        assert zones[name]["FlashAttentionScore"] == 3, "one for each layer"
        assert zones[name]["LayerNormExt"] == 3 * 3 + 1, "three for each layer, and one for memory"
    assert zones["update"]["FlashAttentionScoreGrad"] == 3 and zones["update"]["LayerNormGradExt"] == 10
    assert "FlashAttentionScore" not in zones["sampler"], "one token at a time, on an image that its group shares"


@pytest.mark.slow
def test_every_option_passes():
    check("coco/grpo.yaml", "encoder.trainable=true", "rl.top_k=5", "eval.beams=2", "eval.block_trigrams=true")
    check("coco/ce.yaml", "ce.micro_batches=2", "ce.label_smoothing=0.1")
