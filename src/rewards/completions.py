"""What every reward is given: the completions of a rollout as text.

Letters: M completions, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Completions:
    """M decoded completions on training images, as one worker has them.

    rollout: its number; rows int [M]: places among the rollout's samples of all workers: with `rollout` they key random
    draws. image_rows int [M]: rows of the training records; captions: as people read them; ended bool [M]: whether an
    end token was sampled; split: what makes words of a caption (Words.split of src/data/words.py).
    """

    rollout: int
    rows: np.ndarray
    image_rows: np.ndarray
    captions: list[str]
    ended: np.ndarray
    split: Callable[[str], list[str]] = str.split

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of each caption, as ground truths have them."""
        return [self.split(caption) for caption in self.captions]
