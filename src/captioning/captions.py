"""The captions of one photograph, as the table, the file and the page take them."""

from typing import NamedTuple


class DecodedCaption(NamedTuple):
    """decoding: greedy, the name of a beam search, or sample. logprob: sum over all tokens with the EOS, in nats."""

    decoding: str
    caption: str
    logprob: float


Captions = dict[str, list[DecodedCaption]]  # by checkpoint: the greedy one, the best beam, the samples
