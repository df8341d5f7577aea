"""Whatever satisfies the policy interface can be sampled, decoded, trained, resumed and evaluated."""

import itertools
import json
import shutil
import subprocess

import mindspore as ms
import numpy as np
import pytest
from conftest import BOS, CHANNELS, PAD
from mindspore import Tensor
from safetensors.numpy import load_file
from tiny import PYTHON, ROOT, TINY, tiny_data
from toy_policy import ToyPolicy

from src.data.tokenizer import TokenIds
from src.decoding.attention import Attention
from src.decoding.beam import BeamDecoder
from src.decoding.distribution import Sampled
from src.decoding.generation import compile_generation
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses.grpo import LogprobCell
from src.runtime.rng import uniforms

ENDS = (3, 7)
TOKENS = 20


@pytest.fixture(scope="module")
def toy(allowed):
    return ToyPolicy(None, CHANNELS, TokenIds(PAD, BOS, ENDS, allowed), cached=True).set_train(False)


def generate(generation, *inputs):
    function = compile_generation("any", generation, lambda name, cell: cell)
    return [output.asnumpy() for output in function(*inputs)]


def test_a_step_is_compiled_once(toy, features):
    ms.set_context(mode=ms.GRAPH_MODE)
    cells = []
    sampler = GroupSampler(toy, TOKENS, Sampled())
    function = compile_generation("any", sampler, lambda name, cell: cells.append(cell) or cell)
    for seed in (1, 2):
        function(features, Tensor(uniforms(seed, 0, 0, 2 * 3, TOKENS).reshape(2, 3, TOKENS)))
    assert [len(cell.compile_cache) for cell in cells] == [1, 1]


def numpy_logprobs(toy, feature, rows):
    """float64 log-probs [R, T] of completions [R, T] of one image [N, C]."""
    embedding, image, output = (value.asnumpy().astype(np.float64) for value in (toy.embedding, toy.image, toy.output))
    results = []
    for row in rows:
        total, logprobs = np.zeros(8), []
        for before, token in zip([BOS, *row], row):
            total = total / 2 + embedding[before]
            logits = np.tanh(feature.astype(np.float64).mean(0) @ image + total) @ output
            logits = np.where(toy.token_ids.allowed, logits, -np.inf)
            logprobs.append(logits[token] - np.log(np.exp(logits).sum()))
        results.append(logprobs)
    return np.array(results)


def test_the_sampler_calls_one_step_and_ends_at_either_token(mode, toy, features):
    draws = Tensor(uniforms(1, 0, 0, 2 * 50, TOKENS).reshape(2, 50, TOKENS))
    ids, mask, logprobs = generate(GroupSampler(toy, TOKENS, Sampled()), features, draws)
    ended = set()
    for row, counts in zip(ids, mask):
        places = np.flatnonzero(np.isin(row, ENDS))
        length = places[0] + 1 if len(places) else TOKENS
        ended.add(int(row[length - 1]))
        assert counts.tolist() == [1.0] * length + [0.0] * (TOKENS - length) and (row[length:] == PAD).all()
    assert set(ENDS) < ended
    again = LogprobCell(toy, Sampled())(features, Tensor(ids)).asnumpy()
    np.testing.assert_allclose(again[mask > 0], logprobs[mask > 0], atol=1e-4)
    for image, feature in enumerate(features.asnumpy()):
        rows = slice(50 * image, 50 * image + 5)
        expected = numpy_logprobs(toy, feature, ids[rows])
        np.testing.assert_allclose(logprobs[rows][mask[rows] > 0], expected[mask[rows] > 0], atol=1e-4)


def test_the_greedy_row_is_greedy_decoding(toy, features):
    draws = Tensor(uniforms(2, 0, 0, 2 * 3, 6).reshape(2, 3, 6))
    joint = generate(GroupSampler(toy, 6, Sampled(), greedy=True), features, draws)
    for alone, together in zip(generate(GreedyDecoder(toy, 6), features), joint):
        np.testing.assert_allclose(together.reshape(2, 4, 6)[:, 3], alone, atol=1e-5)


def test_it_stops_calling_when_all_rows_have_ended(toy, features, monkeypatch):
    bias = toy.forbidden.asnumpy().copy()
    bias[ENDS[0]] = 100.0
    monkeypatch.setattr(toy, "forbidden", Tensor(bias))
    calls = []
    step = ToyPolicy.step
    monkeypatch.setattr(ToyPolicy, "step", lambda *inputs: calls.append(1) or step(*inputs))
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        ids, mask, _ = generate(GreedyDecoder(toy, TOKENS), features)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert ids.tolist() == [[ENDS[0]] + [PAD] * (TOKENS - 1)] * 2 and mask.sum() == 2
    assert len(calls) < TOKENS / 2


@pytest.mark.parametrize("block_trigrams", [False, True])
def test_beams_find_the_best_completion_of_all(mode, toy, features, block_trigrams):
    words = [token for token in np.flatnonzero(toy.token_ids.allowed) if token not in ENDS]
    rows = [(*start, end) for n in range(3) for start in itertools.product(words, repeat=n) for end in ENDS]
    rows += list(itertools.product(words, repeat=3))
    cell = BeamDecoder(toy, 3, len(words) ** 2 + 2, block_trigrams=block_trigrams)
    ids, mask, scores = generate(cell, features)
    for image, feature in enumerate(features.asnumpy()):
        best = max(rows, key=lambda row: numpy_logprobs(toy, feature, [row]).sum())
        assert tuple(ids[image][mask[image] > 0]) == best
        assert scores[image] == pytest.approx(numpy_logprobs(toy, feature, [best]).sum(), abs=1e-4)


def test_beams_block_repeated_trigrams(toy, features, monkeypatch):
    bias = toy.forbidden.asnumpy().copy()
    bias[list(ENDS)] = -5.0  # else completions end before they repeat anything
    monkeypatch.setattr(toy, "forbidden", Tensor(bias))
    without, blocked = (generate(BeamDecoder(toy, 16, 3, 0.0, block), features)[0] for block in (False, True))

    def repeats(row):
        words = [int(token) for token in row if token != PAD]
        trigrams = list(zip(words, words[1:], words[2:]))
        return len(set(trigrams)) < len(trigrams)

    assert any(map(repeats, without)) and not any(map(repeats, blocked))


def test_attention_sums_to_one(toy, features):
    weights = Attention(toy)(features, Tensor(np.full((4, 5), 5, np.int32))).asnumpy()
    assert weights.shape == (4, 5, features.shape[1])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


SETTINGS = [*TINY, "decoder.dropout=0.2", "encoder.trainable=false", "ce.save_steps=1", "encoder.checkpoint=null"]


def run(root, program, stage, *more):
    settings = [*SETTINGS, f"data.root={tiny_data()}", f"output_root={root}"]
    command = [PYTHON, str(ROOT / "tests/toy_policy.py"), program, "--config", f"configs/demo/{stage}.yaml"]
    done = subprocess.run([*command, *settings, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def resume_from_previous(folder, again):
    """The last part of a run once more, from the checkpoint before the last: it must end with the same bits."""
    shutil.copytree(folder, again)
    (again / "completed").unlink()
    (again / "checkpoints/last").unlink()


def test_it_is_trained_resumed_and_evaluated_by_the_programs(tmp_path):
    first = tmp_path / "first"
    run(first, "train", "ce")
    run(first, "train", "grpo")
    for stage in ("ce", "grpo"):
        lines = [json.loads(line) for line in (first / f"demo-{stage}/metrics.jsonl").read_text().splitlines()]
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        assert len(losses) > 3 and np.isfinite(losses).all()
        assert sum("val/CIDEr" in line for line in lines) == 3
    held = load_file(first / "demo-grpo/checkpoints/last")
    assert {name for name in held if name.startswith("model.")} == {"model.embedding", "model.image", "model.output"}

    second = tmp_path / "second"
    for stage in ("ce", "grpo"):
        resume_from_previous(first / f"demo-{stage}", second / f"demo-{stage}")
        init = [] if stage == "ce" else [f"init_checkpoint={first}/demo-ce/checkpoints/best"]
        assert "complete" not in run(second, "train", stage, *init)
        one, other = (load_file(root / f"demo-{stage}/checkpoints/last") for root in (first, second))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{stage} {name}")

    best = ["--checkpoint", str(first / "demo-grpo/checkpoints/best")]
    for more in (["eval.samples=2"], ["eval.beams=2", "eval.block_trigrams=true"]):
        assert "CIDEr" in run(first, "eval", "grpo", *best, *more)
    samples = json.loads((first / "demo-grpo/samples_test.json").read_text())
    assert len(samples) == 16 and {len(row["captions"]) for row in samples} == {2}
    captions = json.loads((first / "demo-grpo/captions_test.json").read_text())
    assert len({row["caption"] for row in captions}) > 1
    assert (first / "demo-grpo/captions_test_beam2-lp1-no3.json").is_file()
