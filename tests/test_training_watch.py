"""Which statistics are a sign that training teaches nothing, and what is said of them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from src.config.load import load_config
from src.rl.rollout import Rollout
from src.training.watch import TrainingWatch


def watching(*settings, stage="grpo"):
    """A watch of 20 rollouts or epochs, all validated, and the list of its warnings."""
    settings = ["ce.epochs=20", "rl.rollouts=20", "eval.every=1", "rewards.caprl=0", *settings]
    warnings = []
    return TrainingWatch(load_config(f"configs/demo/{stage}.yaml", settings), warnings.append), warnings


def rollout(rewards, advantages=0.0, equal=False):
    """Samples of two images, G each, which differ unless they are `equal`; rewards: of every group."""
    rewards = np.array([rewards, rewards], np.float32)
    group = rewards.shape[1]
    rows = np.arange(2 * group) // (group if equal else 1)
    ids = np.stack([rows + 4, np.full(2 * group, 5), np.arange(2 * group)], 1).astype(np.int32)
    mask = np.array([[1, 1, 0]] * (2 * group), np.float32)  # the last token is none
    zeros = np.zeros(ids.shape, np.float32)
    advantages = np.full(2 * group, advantages, np.float32)
    return Rollout(np.arange(2), ids, mask, zeros, zeros, rewards, advantages)


FLAT = rollout([0.5, 0.5])
LIVELY = rollout([0.0, 1.0], advantages=1.0)


def test_three_flat_rollouts_in_a_row_are_named_once():
    watch, warnings = watching()
    for each in (FLAT, FLAT, LIVELY, FLAT, FLAT):
        watch.rollout(each, truncated=0.0)
    assert warnings == []
    watch.rollout(replace(FLAT, advantages=LIVELY.advantages * [0, 0, 0, -1]), truncated=0.0)  # one group teaches
    for _ in range(2):
        watch.rollout(FLAT, truncated=0.0)
    assert warnings == []
    for _ in range(9):
        watch.rollout(FLAT, truncated=0.0)
    (line,) = warnings
    assert line.startswith("3 rollouts in a row taught nothing: rewards.cider rewards all samples")


@pytest.mark.parametrize(
    "settings, rewards, equal, words",
    [
        ("", [0, 0], False, "every reward is 0.*data.annotations.*tokenizer"),
        ("rl.top_k=1", [0.5, 0.5], True, "rl.top_k=1 .* set rl.top_k=0"),
        ("rl.temperature=0.01", [0, 0], True, "all samples of an image are equal; raise rl.temperature=0.01"),
        ("rl.group_size=1 advantage.baseline=greedy advantage.scale=none", [0], False, "every reward is 0"),
        ("rewards.cider=0 rewards.length=1 rewards.repetition=2", [0, 0], False, "length . rewards.repetition rewards"),
        (
            "rewards.caprl=1 rewards.cider=0",
            [np.nan, np.nan],
            False,
            "no image has a question.*caprl.questions",
        ),
        ("rewards.caprl=1 rewards.cider=0", [0, 0], False, "no question is answered correctly; check caprl.questions"),
    ],
)
def test_the_key_depends_on_the_cause(settings, rewards, equal, words):
    caprl = ["caprl.questions=q.jsonl", "rewards.caprl=0"]
    watch, warnings = watching(*caprl, "rl.rollouts=2", *settings.split())
    watch.rollout(rollout(rewards, equal=equal), truncated=0.0)
    assert warnings == []
    watch.rollout(rollout(rewards, equal=equal), truncated=0.0)  # all that the run has
    (line,) = warnings
    assert re.search(words, line), line


def test_samples_that_are_cut_off_are_the_only_cause_named():
    watch, warnings = watching("rl.tokens=3")
    for truncated in (1.0, 1.0, 0.9, 1.0, 0.96):
        watch.rollout(LIVELY, truncated)
    assert warnings == []
    watch.rollout(LIVELY, 0.96)
    for _ in range(3):
        watch.rollout(FLAT, 1.0)
    (line,) = warnings
    assert line.startswith("96% of the samples are cut off at rl.tokens=3: raise rl.tokens")
    for _ in range(3):
        watch.rollout(rollout([0.5, 0.5], equal=True), 1.0)
    assert "all samples of an image are equal" in warnings[1]
    watch.finished("one", "one")
    assert len(warnings) == 2


def test_limits_that_cut_most_captions():
    """Of 2, 3, 4 and 5 tokens: a limit of 3 cuts half, which is still learned from; of 2, three of four."""
    rows = [[4] * length for length in (2, 3, 4, 5)]
    for stage, key in (("ce", "ce.tokens"), ("grpo", "rl.tokens")):
        watch, warnings = watching(f"{key}=3", "eval.tokens=3", stage=stage)
        watch.captions(rows, unknown=1)
        assert warnings == []
        watch, warnings = watching(f"{key}=2", "eval.tokens=2", stage=stage)
        watch.captions(rows, unknown=1)
        watch.rollout(rollout([0, 0]), 1.0)
        watch.validation(0.0, 1.0, 9)
        eval_line, line = warnings
        assert line.startswith(f"{key}=2 cuts 75% of the training captions, whose median is 3 tokens")
        assert "eval.tokens=2 cuts" in eval_line and line.endswith(f"raise {key}")


@pytest.mark.parametrize(
    "settings, words",
    [
        ("tokenizer.kind=word", "lacks 40% of the words of the training captions; lower tokenizer.min_count"),
        ("tokenizer.kind=wordpiece tokenizer.vocab=v.txt", "set tokenizer.vocab to one of the captions' language"),
        ("init_checkpoint=best", "start from a checkpoint trained on such captions"),
    ],
)
def test_a_vocabulary_that_lacks_the_words(settings, words):
    watch, warnings = watching(*settings.split(), stage="ce")
    watch.captions([[4, 1, 5, 6, 7], [4, 5, 6, 7, 8]], unknown=1)
    assert warnings == []
    watch.captions([[4, 1, 1, 1, 7], [4, 5, 6, 1, 8]], unknown=1)
    (line,) = warnings
    assert words in line


def test_validations_that_all_score_nothing():
    watch, warnings = watching(stage="ce")
    for score in (0.0, 0.0, 0.1, 0.0, 0.0):
        watch.validation(score, 0.5, images=9)
    assert warnings == []
    for _ in range(2):
        watch.validation(0.0, 0.5, images=9)
    (line,) = warnings
    assert (
        line.startswith("validation CIDEr was 0.0 3 times in a row: no caption shares") and "data.annotations" in line
    )
    watch, warnings = watching("ce.epochs=3", "eval.every=2", stage="ce")  # two validations
    watch.validation(0.0, 0.5, images=9)
    assert warnings == []
    watch.validation(0.0, 0.5, images=9)
    assert len(warnings) == 1
    watch, warnings = watching(stage="ce")
    for _ in range(4):
        watch.validation(0.0, 0.5, images=1)  # which is said before training
    assert warnings == []


def test_validation_captions_that_never_end():
    watch, warnings = watching()
    for truncated in (1.0, 1.0, 0.99, 1.0, 1.0):
        watch.validation(0.5, truncated, images=9)
    assert warnings == []
    watch.validation(0.0, 1.0, images=9)
    for _ in range(3):
        watch.validation(0.0, 1.0, images=9)
    (line,) = warnings
    assert line.startswith("no validation caption ends within eval.tokens=20: raise eval.tokens")


def test_weights_that_stay_as_they_are():
    watch, warnings = watching("precision=float16", stage="ce")
    watch.finished("one", "other")
    assert warnings == []
    watch.finished("one", "one")
    assert warnings == ["no weight changed: raise ce.optimizer.lr, or set precision=float32"]


def test_silent_workers_say_nothing():
    watch = TrainingWatch(load_config("configs/demo/grpo.yaml"), None)
    for _ in range(4):
        watch.rollout(FLAT, 1.0)
