"""The completions of a rollout as text, the input of every reward.

Letters: M completions, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def _at_blanks(captions: Sequence[str]) -> list[list[str]]:
    return [caption.split() for caption in captions]


@dataclass(frozen=True)
class Completions:
    """One worker's M decoded completions for training images.

    rollout: its number; rows int [M]: places among the rollout's samples of all workers; with `rollout` they key random
    draws. image_rows int [M]: rows of the training records; captions: as people read them; ended bool [M]: whether an
    end token was sampled; split: splits captions into words (Words.split_all of src/data/words.py).
    """

    rollout: int
    rows: np.ndarray
    image_rows: np.ndarray
    captions: list[str]
    ended: np.ndarray
    split: Callable[[Sequence[str]], list[list[str]]] = _at_blanks

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of each caption, split like ground truths."""
        return self.split(self.captions)
