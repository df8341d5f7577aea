"""The CapRL reward by a real language model behind a real server (tests/language_model.py)."""

import json
import subprocess
import time

import numpy as np
import pytest
from language_model import answerable, connect_settings, language_model, missing
from tiny import PYTHON, TINY, WORLD, run, tiny_data, tiny_mixture

from src.config.schema import CapRLConfig
from src.data.questions import present
from src.rewards.server import ServerAnswerer

PORT = 8137

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}: tests/language_model.py says how"),
]


def test_it_answers_from_captions(tmp_path):
    """24 questions that a caption answers, among 3 or 5 options, from that caption, and from one of another image."""
    pairs = answerable(tiny_data(), 24)
    rng = np.random.default_rng(0)
    own = [present(question, caption, rng.permutation(len(question.options))) for question, caption in pairs]
    others = [caption for _, caption in pairs[12:] + pairs[:12]]
    other = [present(q, caption, rng.permutation(len(q.options))) for (q, _), caption in zip(pairs, others)]
    settings = dict(questions=None, presentations=4, max_failed=0.2, timeout=120.0, retries=0, concurrency=2)
    settings |= dict(max_tokens=32, extra_body=None)
    with language_model(PORT, tmp_path / "log"):
        answerer = ServerAnswerer(CapRLConfig(**settings, **connect_settings(PORT)))
        answers = answerer.answer([presentation for presentation, _ in own + other])
    right = np.array([answer == truth for answer, (_, truth) in zip(answers, own + other)]).reshape(2, -1).mean(1)
    chance = np.mean([1 / len(presentation.options) for presentation, _ in own])
    assert len(own) == 24 and chance < 0.3
    assert right[0] > 0.55 and right[0] > right[1] + 0.15, right


def test_a_server_that_dies_in_the_middle_stops_the_run_which_goes_on_with_another(tmp_path):
    done = run("train.py", "--config", "configs/demo/ce.yaml", *TINY, "ce.epochs=1", *folders(tmp_path))
    assert done.returncode == 0, done.stderr
    init = tmp_path / "demo-ce/checkpoints/best"
    server = [f"caprl.{key}={value}" for key, value in connect_settings(PORT).items()]
    small = ["rl.rollout_images=4", "rl.sample_images=4", "rl.group_size=2", "caprl.presentations=1"]
    settings = [*TINY, *tiny_mixture(), *server, *small, "caprl.concurrency=2", *folders(tmp_path)]
    command = ["train.py", "--config", "configs/demo/grpo.yaml", *settings, f"init_checkpoint={init}"]
    metrics = tmp_path / "demo-grpo/metrics.jsonl"
    with language_model(PORT, tmp_path / "log") as process:
        training = subprocess.Popen(
            [PYTHON, *command], cwd=WORLD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while training.poll() is None and not (metrics.exists() and "rollout/reward_mean" in metrics.read_text()):
            time.sleep(0.2)
        process.kill()
        errors = training.communicate()[1]
    assert training.returncode == 3 and "caprl got no answer" in errors and "run the same command to resume" in errors
    with language_model(PORT, tmp_path / "log"):
        done = run(*command)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rollouts = [line for line in lines if "rollout/reward_caprl_mean" in line]
    assert len(rollouts) == 2 and all(line["rollout/caprl_failed"] == 0 for line in rollouts)
    assert all(0 <= line["rollout/reward_caprl_mean"] <= 1 for line in rollouts)


def folders(root):
    return [f"data.root={tiny_data()}", f"output_root={root}"]
