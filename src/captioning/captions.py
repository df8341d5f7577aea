"""The captions of one photograph, for the table, the file and the page."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class DecodedCaption(NamedTuple):
    """decoding: greedy, the name of a beam search, or sample. logprob: sum over all tokens with the EOS, in nats."""

    decoding: str
    caption: str
    logprob: float


Captions = dict[str, list[DecodedCaption]]  # by checkpoint: the greedy one, the best beam, the samples
# By checkpoint, for each caption: the words as a reader selects them, and the attention of each, float32 [words, N].
Looks = Mapping[str, Sequence[tuple[list[str], np.ndarray]]]
