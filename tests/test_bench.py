"""The benchmark: its floors against hand-worked counts, and its output."""

import json

import mindspore as ms
import pytest
from tiny import run

from src.bench.floors import convolutions, floors
from src.bench.sizes import parse
from src.bench.timing import Work, timed
from src.models.encoders.cnn import SmallCNN
from src.runtime.errors import InputError

TINY = ["images=2", "group=3", "length=4", "layers=1", "width=4", "encoder=cnn", "vocab=10", "repeats=1"]
TINY += ["decoder.heads=2", "decoder.feed_forward=8", "data.image_size=32", "beams=2"]


@pytest.fixture
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def test_convolutions_are_counted(pynative):
    # 3x3 convolutions 3-16-48-96-128 of stride 2 on 32 pixels give sides 16, 8, 4, 2; one more keeps 128 and 2.
    weights = [9 * 3 * 16, 9 * 16 * 48, 9 * 48 * 96, 9 * 96 * 128, 9 * 128 * 128]
    operations = 2 * sum(size * side**2 for size, side in zip(weights, (16, 8, 4, 2, 2)))
    assert convolutions(SmallCNN(32), 32) == (operations, sum(weights))


def test_hand_worked_floors(pynative):
    """B=2, G=3 (M=6), T=4, D=4, F=8, V=10, C=128, N=4 (a grid of 2x2).

    Weights that a token meets: 3*16 (query, key, value) + 16 + 16 + 16 (self out, cross query, cross out) + 2*32 = 160,
    and 10*4 of the vocabulary: 200. That an image token meets: 128*4 + 2*16 = 544.
    Attention of a row: its past, 1+2+3+4 = 10 pairs, and its image, 4*4 = 16 pairs, 2 products of 2*D operations each.
    """
    config, sizes = parse(TINY)
    work = floors(config, sizes, SmallCNN(32))
    row = 2 * 200 * 4 + (10 + 16) * 2 * 2 * 4
    image = 2 * 4 * 544
    assert work["sample"].operations == 2 * image + 6 * row
    assert work["sample"].bytes == 4 * (2 * 4 * 128 + 544 + 4 * 200)
    assert work["greedy"].operations == 2 * image + 2 * row
    assert work["beam"].operations == 2 * image + 4 * row
    features = 2 * 2 * 4 * 128 * 4  # operations of the projection of the features, which have no gradient
    assert work["update_features"].operations == 3 * (2 * image + 6 * row) - features
    assert work["update_features"].bytes == 4 * (10 * (200 + 544) + 2 * 4 * 128)
    convolved, weights = convolutions(SmallCNN(32), 32)
    assert work["encode"] == Work(2 * convolved, 4 * weights)
    assert work["rollout"].operations == 2 * convolved + work["sample"].operations
    assert work["update"].operations == 3 * 2 * convolved + 3 * (2 * image + 6 * row)


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    ceilings = {"matmul_gflops": 2.0, "bandwidth_gbs": 4.0}
    assert Work(6e9, 4e9).seconds(ceilings) == pytest.approx(3.0)
    assert Work(2e9, 8e9).seconds(ceilings) == pytest.approx(2.0)


def test_the_first_call_is_apart_from_the_median():
    calls = []
    timing = timed(lambda: calls.append(0), repeats=4)
    assert len(calls) == 6 and timing["seconds"] >= 0 and timing["compile_s"] >= 0


@pytest.mark.parametrize(
    "argument, named",
    [
        ("images", "key=value"),
        ("vocab=2", "vocab"),
        ("repeats=0", "repeats"),
        ("imagse=3", "imagse"),
        ("width=5", "heads"),
    ],
)
def test_bad_sizes_are_named(argument, named):
    with pytest.raises(InputError, match=named):
        parse([argument])


def test_output():
    """The contract of the last line, at sizes that take seconds."""
    done = run("-m", "src.bench", *TINY, "documents=50", "rewarded=20", "scored=5", "device=CPU")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["sizes"]["vocab"] == 10 and result["sizes"]["images"] == 2 and result["sizes"]["trainable"] is True
    assert all(value > 0 for value in result["ceilings"].values())
    device = {"encode", "sample", "rollout", "reference", "update", "update_features", "ce_step", "greedy", "beam"}
    assert device | {"reward"} <= result["phases"].keys()
    for name in device | {"reward"}:
        phase = result["phases"][name]
        assert phase["seconds"] > 0 and phase["captions_per_s"] > 0 and 0 < phase["of_floor"] < 1, name
    captions = {"encode": 2, "sample": 6, "reward": 20, "greedy": 2, "ce_step": 6}
    for name, number in captions.items():
        phase = result["phases"][name]
        assert phase["captions_per_s"] * phase["seconds"] == pytest.approx(number), name
    assert result["compile_s"]["cold"] > result["compile_s"]["cached"] > 0
    assert result["peak_memory_mb"] > 100
