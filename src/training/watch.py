"""Warn while a run trains without learning, once for each cause, and name the key to change.

Letters: B images, G group size, M = B*G rows, T tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from src.config.schema import Config
from src.rl.rollout import Rollout

_IN_A_ROW = 3  # rollouts or validations, or as many as the run has
_CUT = 0.5  # above this share of cut captions, mostly fragments are learned
_UNKNOWN = 0.2  # above this share of unknown words, captions lack most of their content
_NEARLY_ALL = 0.95  # share of samples cut off


class TrainingWatch:
    """warn: receives each warning; None for workers that are silent."""

    def __init__(self, config: Config, warn: Callable[[str], None] | None) -> None:
        self._config = config
        self._warn = warn
        self._warned: set[str] = set()
        self._streaks: Counter[str] = Counter()
        ce, rl, every = config.ce, config.rl, config.eval.every
        self._validations = -(-ce.epochs // every) if config.stage == "ce" else 1 + -(-rl.rollouts // every)

    def captions(self, rows: Sequence[Sequence[int]], unknown: int) -> None:
        """Warn if limits cut most training captions, or the vocabulary lacks many of their words.

        rows: token ids of training captions, without EOS; unknown: the id of unknown words.
        """
        config = self._config
        lengths = np.array([len(row) for row in rows])
        trained = ("ce.tokens", config.ce.tokens, "learned, without an end")
        if config.stage != "ce":
            trained = ("rl.tokens", config.rl.tokens, "rewarded")
        for key, limit, use in (("eval.tokens", config.eval.tokens, "scored"), trained):
            share, median = (lengths > limit).mean(), int(np.median(lengths))
            if share > _CUT:
                text = f"{key}={limit} cuts {share:.0%} of the training captions, whose median is {median} tokens"
                self._once(key, f"{text}, so fragments are {use}; raise {key}")
        share = np.mean(np.concatenate(rows) == unknown)
        if share > _UNKNOWN:
            word_pieces = config.tokenizer.kind == "wordpiece"
            fix = "set tokenizer.vocab to one of the captions' language" if word_pieces else "lower tokenizer.min_count"
            if config.init_checkpoint is not None:
                fix = "start from a checkpoint trained on such captions, or without init_checkpoint"
            self._once("vocabulary", f"the vocabulary lacks {share:.0%} of the words of the training captions; {fix}")

    def validation(self, score: float, truncated: float, images: int) -> None:
        """Warn of validations that all score 0, or whose captions never end.

        score: CIDEr; truncated: share of the captions without an EOS; images: of the validation split.
        """
        endless = f"no validation caption ends within eval.tokens={self._config.eval.tokens}"
        endless += ": raise eval.tokens, ce.tokens if it cuts captions, or ce.epochs"
        self._persists("eval.tokens", truncated == 1, self._validations, lambda: endless)
        # With one image, CIDEr is always 0 (src/training/notices.py).
        zero = score == 0 and images > 1 and "eval.tokens" not in self._warned
        text = "validation CIDEr was 0.0 {} times in a row: no caption shares an informative word with its ground "
        text += "truths; check the captions in data.annotations, and raise ce.epochs or ce.optimizer.lr"
        self._persists("CIDEr", zero, self._validations, lambda: text.format(self._streaks["CIDEr"]))

    def rollout(self, rollout: Rollout, truncated: float) -> None:
        """Warn of samples that are nearly all cut off (truncated: their share), and of groups without any spread."""
        config = self._config.rl
        text = f"{truncated:.0%} of the samples are cut off at rl.tokens={config.tokens}"
        text += ": raise rl.tokens, ce.tokens if it cut captions, or ce.epochs"
        self._persists("rl.tokens", truncated > _NEARLY_ALL, config.rollouts, lambda: text)
        self._persists("no spread", not rollout.advantages.any(), config.rollouts, lambda: self._why_flat(rollout))

    def finished(self, before: str, after: str) -> None:
        """Warn if the digests of the trained weights before and after some updates are equal."""
        if before == after and not self._streaks["no spread"]:
            section = "ce" if self._config.stage == "ce" else "rl"
            text = f"no weight changed: raise {section}.optimizer.lr"
            self._once("weights", text + (", or set precision=float32" if self._config.precision == "float16" else ""))

    def _why_flat(self, rollout: Rollout) -> str:
        """Why every advantage of a rollout is 0, and what to change; empty if a warning names fragments already."""
        rl, rewards = self._config.rl, rollout.rewards
        names = [f"rewards.{name}" for name in self._config.rewards.active]
        samples = np.where(rollout.completion_mask > 0, rollout.completion_ids, -1)
        groups = samples.reshape(*rewards.shape, -1)  # [B, G, T]
        zero = not np.nan_to_num(rewards).any()
        if np.isnan(rewards).all():
            why = "no image has a question; add questions about training images to caprl.questions"
        elif rl.top_k == 1:
            why = "rl.top_k=1 makes all samples of an image equal; set rl.top_k=0"
        elif rewards.shape[1] > 1 and (groups == groups[:, :1]).all():
            why = f"all samples of an image are equal; raise rl.temperature={rl.temperature:g}"
        elif "rl.tokens" in self._warned:
            return ""
        elif zero and "rewards.cider" in names:
            why = (
                "every reward is 0, no sample shares an informative word with its ground truths; check the captions in "
                "data.annotations, and that the vocabulary (tokenizer.*, or init_checkpoint's) has their words"
            )
        elif zero and "rewards.caprl" in names:
            why = "no question is answered correctly; check caprl.questions and the answering model (caprl.answerer)"
        else:
            why = f"{' + '.join(names)} rewards all samples of an image alike; give another of rewards.* a weight"
        return f"{self._streaks['no spread']} rollouts in a row taught nothing: {why}"

    def _persists(self, cause: str, holds: bool, chances: int, text: Callable[[], str]) -> None:
        """Warn if a condition holds several times in a row. chances: how often a run can look at it."""
        self._streaks[cause] = self._streaks[cause] + 1 if holds else 0
        if self._streaks[cause] >= min(_IN_A_ROW, chances) and cause not in self._warned and (line := text()):
            self._once(cause, line)

    def _once(self, cause: str, text: str) -> None:
        if cause not in self._warned and self._warn is not None:
            self._warn(text)
        self._warned.add(cause)
