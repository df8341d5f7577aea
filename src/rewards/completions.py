"""What every reward is given: the completions of a rollout as text.

Letters: M completions, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from src.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completions:
    """M decoded completions on training images, as one worker has them.

    rollout: its number; rows int [M]: places among the rollout's samples of all workers: with `rollout` they key random
    draws. image_rows int [M]: rows of the training records; captions: as people read them; ended bool [M]: whether the
    EOS was sampled; split: what makes words of a caption (Words.split of src/data/words.py).
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


def decode_completions(
    tokenizer: Tokenizer,
    rollout: int,
    rows: np.ndarray,
    image_rows: np.ndarray,
    completion_ids: np.ndarray,
    completion_mask: np.ndarray,
    split: Callable[[str], list[str]] = str.split,
) -> Completions:
    """The text of completions int32 [M, T]. One whose mask (float32 [M, T]) ends without an EOS is truncated."""
    ended = ((completion_ids == tokenizer.eos_id) & (completion_mask > 0)).any(1)
    return Completions(rollout, rows, image_rows, [tokenizer.decode(row) for row in completion_ids], ended, split)
