"""The captions of one photograph, as they go to the table, the file and the page."""

from typing import NamedTuple


class DecodedCaption(NamedTuple):
    """decoding: greedy, the name of a beam search, or sample. logprob: of all its tokens, the EOS too, in nats."""

    decoding: str
    caption: str
    logprob: float


Captions = dict[str, list[DecodedCaption]]  # by checkpoint: the greedy one, the best beam, the samples
