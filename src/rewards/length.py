"""Penalties that need the caption alone: for its length, and for repetition. The best value is 0."""

import numpy as np

from src.config.schema import LengthConfig
from src.rewards.completions import Completions


def length(completions: Completions, config: LengthConfig) -> np.ndarray:
    """[M], 0 for a caption of least to most words, falling linearly to -1 at `margin` words outside that range.

    r = -min(1, max(least - n, n - most, 0) / margin): DAPO's soft overlong punishment (arXiv:2503.14476, equation 13)
    in words, on both sides.
    """
    words = np.array([len(caption) for caption in completions.words])
    outside = np.maximum(np.maximum(config.least - words, words - config.most), 0)
    return -np.minimum(1.0, outside / config.margin)


def repetition(completions: Completions) -> np.ndarray:
    """[M], minus the share of a caption's trigrams that occurred in it before: distinct / all - 1; 0 without any."""
    trigrams = [list(zip(words, words[1:], words[2:])) for words in completions.words]
    return np.array([len(set(each)) / len(each) - 1.0 if each else 0.0 for each in trigrams])
