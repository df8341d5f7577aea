"""GRPO with all rewards at once, whose answering model goes away in the middle."""

import json

import pytest
from fake_server import asked, fake_server, read_caption
from tiny import TINY, documented, messages, run, tiny_data, tiny_mixture


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A CE checkpoint."""
    root = tmp_path_factory.mktemp("ce")
    done = run("train.py", "--config", "configs/demo/ce.yaml", *TINY, "ce.epochs=1", *folders(root))
    assert done.returncode == 0, done.stderr
    return root / "demo-ce/checkpoints/best"


def folders(root):
    return [f"data.root={tiny_data()}", f"output_root={root}"]


def grpo(root, init, server, *more):
    settings = [
        *TINY,
        *tiny_mixture(),
        *folders(root),
        f"init_checkpoint={init}",
        f"caprl.base_url={server.url}",
        *more,
    ]
    return run("train.py", "--config", "configs/demo/grpo.yaml", *settings)


def lines(root):
    path = root / "demo-grpo/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_stops_when_its_answering_model_does_and_goes_on_as_if_nothing_had_been(init, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with fake_server(read_caption) as server:
        done = grpo(whole, init, server)
        assert done.returncode == 0, done.stderr
    assert set().union(*lines(whole)) - {"step", "stage"} <= documented("metrics.jsonl")
    rollouts = [line for line in lines(whole) if "rollout/reward_mean" in line]
    assert len(rollouts) == 2
    for line in rollouts:
        assert line["rollout/caprl_failed"] == 0 and line["rollout/advantage_std"] == pytest.approx(1, abs=1e-3)
        parts = [line[f"rollout/reward_{name}_mean"] for name in ("cider", "caprl", "length", "repetition")]
        assert line["rollout/reward_mean"] == pytest.approx(sum(parts), abs=1e-4)
        assert 0 <= parts[1] <= 1 and -1 <= parts[2] <= 0 and -1 <= parts[3] <= 0

    def dies(body, number):
        """Fails as soon as the first rollout has been logged."""
        return (500, {}) if any("rollout/reward_mean" in line for line in lines(cut)) else read_caption(body)

    with fake_server(dies) as server:
        done = grpo(cut, init, server)
    *warned, _ = messages(done.stderr)
    assert done.returncode == 3, done.stderr
    assert [line.partition("=")[0] for line in warned] == ["warning: eval.tokens", "warning: rl.tokens"]
    assert "questions in rollout 2" in done.stderr and "caprl.max_failed=0.2" in done.stderr
    assert "checkpoints/last is saved" in done.stderr
    with fake_server(read_caption) as server:  # at another port
        done = grpo(cut, init, server)
        assert done.returncode == 0, done.stderr

    def losses(root):
        return [(line["step"], line["train/loss"]) for line in lines(root) if "train/loss" in line]

    assert len(losses(whole)) == 8 and losses(whole) == losses(cut)


def test_without_its_server_a_run_does_not_begin(init, tmp_path):
    with fake_server(read_caption) as server:
        pass
    done = grpo(tmp_path, init, server)
    assert done.returncode == 2 and len(messages(done.stderr)) == 1, done.stderr
    assert f"caprl.base_url={server.url}" in done.stderr and "start the server" in done.stderr
    assert not lines(tmp_path)


@pytest.mark.slow
def test_captions_of_60_tokens_are_sampled_asked_about_and_evaluated(tmp_path):
    long = ["decoder.positions=60", "ce.tokens=60", "rl.tokens=60", "eval.tokens=60", "rl.rollouts=1"]
    done = run("train.py", "--config", "configs/demo/ce.yaml", *TINY, "ce.epochs=1", *folders(tmp_path), *long)
    assert done.returncode == 0, done.stderr
    init = tmp_path / "demo-ce/checkpoints/best"
    with fake_server(read_caption) as server:
        done = grpo(tmp_path, init, server, *long, "rl.temperature=9")  # nearly uniform: an EOS is rare
        assert done.returncode == 0, done.stderr
        lengths = [len(asked(body)[0].split()) for body in server.requests]
    assert max(lengths) == 60 and sum(lengths) > 40 * len(lengths)
    (rollout,) = [line for line in lines(tmp_path) if "rollout/length_mean" in line]
    assert rollout["rollout/length_mean"] > 40
    assert any(line.get("val/length_mean", 0) > 0 for line in lines(tmp_path))


def test_evaluation_by_questions_stands_beside_cider(init, tmp_path):
    images = json.loads((tiny_data() / "annotations/captions_test.json").read_text())["images"]
    line = {"question": "what is there", "options": ["circle", "lion"], "answer": "circle", "type": "shape"}
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(line | {"image_id": image["id"]}) + "\n" for image in images[:12]))
    with fake_server(read_caption) as server:
        caprl = [f"caprl.questions={tmp_path}/{{split}}.jsonl", "caprl.answerer=server", "caprl.model=m"]
        settings = [*TINY, *caprl, f"caprl.base_url={server.url}", "eval.samples=3", *folders(init.parents[2])]
        command = ["-m", "src.commands.pipeline", "eval", "--config", "configs/demo/ce.yaml", "--checkpoint", str(init)]
        done = run(*command, *settings)
        assert done.returncode == 0, done.stderr
    samples = {
        row["image_id"]: row["captions"] for row in json.loads((init.parents[1] / "samples_test.json").read_text())
    }
    right = [["circle" in caption.split() for caption in samples[image["id"]]] for image in images[:12]]
    result = json.loads((init.parents[1] / "eval_test.json").read_text())
    assert result["metrics"]["prism_mean"] == pytest.approx(sum(map(sum, right)) / 36)
    assert result["metrics"]["prism_best"] == pytest.approx(sum(map(any, right)) / 12)
    assert result["prism"]["types"]["shape"]["questions"] == 12 and "CIDEr" in result["metrics"]
    assert "| shape |" in done.stdout and "prism_mean" in done.stdout
