"""Training that teaches nothing is named while it runs, once for each cause and run, with the key to change.

Letters: B images, G group size, M = B*G rows, T tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from src.config.schema import Config
from src.rl.rollout import Rollout

_IN_A_ROW = 3  # rollouts or validations, or as many as the run has
_CUT = 0.5  # share of captions cut, above which fragments are learned
_UNKNOWN = 0.2  # share of unknown words, above which the captions that are learned lack most of what they say
_NEARLY_ALL = 0.95  # share of samples cut off


class Watch:
    """warn: takes each warning; None for workers that are silent."""

    def __init__(self, config: Config, warn: Callable[[str], None] | None) -> None:
        self._config = config
        self._warn = warn
        self._warned: set[str] = set()
        self._streaks: Counter[str] = Counter()
        ce, rl, every = config.ce, config.rl, config.eval.every
        self._validations = -(-ce.epochs // every) if config.stage == "ce" else 1 + -(-rl.rollouts // every)

    def captions(self, rows: Sequence[Sequence[int]], unknown: int) -> None:
        """Warn of limits that cut most training captions, and of a vocabulary that lacks most of their words.

        rows: token ids of training captions, without EOS; unknown: the id of unknown words.
        """
        config = self._config
        lengths = np.array([len(row) for row in rows])
        limits = {"eval.tokens": config.eval.tokens}
        if config.stage == "ce":
            limits["ce.tokens"] = config.ce.tokens
        else:
            limits["rl.tokens"] = config.rl.tokens
        for key, limit in limits.items():
            share = (lengths > limit).mean()
            if share > _CUT:
                median = int(np.median(lengths))
                text = f"{key}={limit} is shorter than {share:.0%} of the training captions, whose median is {median}"
                self._once(key, f"{text} tokens: fragments are {_USE[key]}; raise {key}")
        share = np.mean(np.concatenate(rows) == unknown)
        if share > _UNKNOWN:
            mend = "lower tokenizer.min_count"
            if config.init_checkpoint is not None:
                mend = "start from a checkpoint trained on such captions, or without init_checkpoint"
            elif config.tokenizer.kind == "wordpiece":
                mend = "set tokenizer.vocab to one of the captions' language"
            self._once("vocabulary", f"the vocabulary lacks {share:.0%} of the words of the training captions; {mend}")

    def validation(self, score: float, truncated: float, images: int) -> None:
        """Warn of validations that all score 0, or whose captions never end.

        score: CIDEr; truncated: share of the captions without an EOS; images: of the validation split.
        """
        tokens = self._config.eval.tokens
        if self._again("truncated validation", truncated == 1, self._validations):
            text = f"no validation caption ends within eval.tokens={tokens}"
            self._once("eval.tokens", f"{text}: raise eval.tokens, ce.tokens if it cuts captions, or ce.epochs")
        zero = score == 0 and images > 1  # of one image it always is (src/training/notices.py)
        if self._again("zero CIDEr", zero, self._validations) and "eval.tokens" not in self._warned:
            text = f"validation CIDEr is 0.0, {self._streaks['zero CIDEr']} times in a row: no caption shares a "
            text += "telling word with its ground truths; check the captions that data.annotations names, and raise "
            self._once("zero CIDEr", text + "ce.epochs or ce.optimizer.lr")

    def rollout(self, rollout: Rollout, truncated: float) -> None:
        """Warn of samples that are nearly all cut off (truncated: their share), and of groups without any spread."""
        config, most = self._config.rl, self._config.rl.rollouts
        if self._again("truncated samples", truncated > _NEARLY_ALL, most):
            text = f"{truncated:.0%} of the samples are cut off at rl.tokens={config.tokens}"
            self._once("rl.tokens", f"{text}: raise rl.tokens, ce.tokens if it cut captions, or ce.epochs")
        if self._again("no spread", not rollout.advantages.any(), most) and (why := self._why_flat(rollout)):
            self._once("no spread", f"{self._streaks['no spread']} rollouts in a row have taught nothing: {why}")

    def finished(self, before: str, after: str) -> None:
        """Warn where the digests of the trained weights before and after some updates are equal."""
        if before == after and not self._streaks["no spread"]:
            section = "ce" if self._config.stage == "ce" else "rl"
            text = f"no weight has changed: raise {section}.optimizer.lr"
            self._once("weights", text + (", or set precision=float32" if self._config.precision == "float16" else ""))

    def _why_flat(self, rollout: Rollout) -> str:
        """Why every advantage of a rollout is 0, and what to change; nothing where fragments are named already."""
        rl, rewards = self._config.rl, rollout.rewards
        names = [f"rewards.{name}" for name in self._config.rewards.active]
        samples = np.where(rollout.completion_mask > 0, rollout.completion_ids, -1)
        groups = samples.reshape(*rewards.shape, -1)  # [B, G, T]
        if np.isnan(rewards).all():
            return "no image of them has a question; add questions about training images to caprl.questions"
        if rl.top_k == 1:
            return "rl.top_k=1 makes all samples of an image equal; set rl.top_k=0"
        if rewards.shape[1] > 1 and (groups == groups[:, :1]).all():
            return f"all samples of an image are equal; raise rl.temperature={rl.temperature:g}"
        if "rl.tokens" in self._warned:
            return ""
        if not np.nan_to_num(rewards).any() and "rewards.cider" in names:
            return (
                "every reward is 0, no sample shares a telling word with its ground truths; check the captions that "
                "data.annotations names, and that the vocabulary (tokenizer.*, or init_checkpoint's) has their words"
            )
        if not np.nan_to_num(rewards).any() and "rewards.caprl" in names:
            return "no question is answered rightly; check caprl.questions and the model that answers (caprl.answerer)"
        return f"{' + '.join(names)} rewards all samples of an image alike; give another of rewards.* a weight"

    def _again(self, condition: str, holds: bool, most: int) -> bool:
        """Whether a condition has held long enough in a row; most: how often it can be looked at in a run."""
        self._streaks[condition] = self._streaks[condition] + 1 if holds else 0
        return self._streaks[condition] >= min(_IN_A_ROW, most)

    def _once(self, cause: str, text: str) -> None:
        if cause not in self._warned and self._warn is not None:
            self._warn(text)
        self._warned.add(cause)


_USE = {"ce.tokens": "learned, without an end", "rl.tokens": "rewarded", "eval.tokens": "scored"}
