"""What a policy is: all that decoding, losses, training and evaluation know of a model that captions.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, N image tokens, D width, V vocabulary.
"""

from typing import Any

from mindspore import Parameter, Tensor, nn

from src.data.tokenizer import TokenIds

Prefix = Any  # what an image is to a policy: a tensor, or nested tuples of tensors
Cache = Any  # the same, of the tokens of each row


class Policy(nn.Cell):
    """A model of captions given images, in evaluation mode. Its methods are parsed into graphs.

    Attributes:
        token_ids: the ids that may be sampled, and the special ones.
        width: D.
        encoder: the cell from pixels [B, 3, H, W] to features [B, N, C], with `tokens` (N) and `channels` (C).
        cached: whether `inputs` are features that were computed before training, float16, instead of pixels.
        unrolled: True: the sampler is one graph of T steps, each with its own shapes. False: `step` is compiled once
            and called T times, with a position that is a tensor.
        dropout_sites: the drop rate of each place where CE drops values of [M, T, D]; empty without dropout.
    """

    token_ids: TokenIds
    width: int
    encoder: nn.Cell
    cached: bool
    unrolled = True
    dropout_sites: tuple[float, ...] = ()

    def prefix(self, inputs: Tensor) -> Prefix:
        """What the rows of a group share, computed once per image from pixels or features of B images."""
        raise NotImplementedError

    def hidden(self, prefix: Prefix, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Teacher forcing: completion_ids int32 [M, T] -> [M, T, D], of which row t predicts token t.

        keep: for each of `dropout_sites` its factors [M, T, D]; None: nothing is dropped.
        """
        raise NotImplementedError

    def start(self, prefix: Prefix, rows: int) -> Cache:
        """The cache of M = `rows` completions without a token."""
        raise NotImplementedError

    def step(self, token: Tensor, position: int | Tensor, prefix: Prefix, cache: Cache) -> tuple[Tensor, Cache]:
        """One token of each row: token int32 [M] at `position` (BOS at 0) -> hidden [M, D] and the cache with it.

        A policy that writes its cache in place returns the same one.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> float32 [R, V]; at most -1e9 for tokens that are not allowed."""
        raise NotImplementedError

    def reorder(self, cache: Cache, parents: Tensor) -> Cache:
        """The cache whose row m is row parents[m] (int32 [M]) of this one: beams have moved."""
        raise NotImplementedError

    def attention(self, prefix: Prefix, completion_ids: Tensor) -> Tensor:
        """Where each token of completion_ids int32 [M, T] looked in its image: float32 [M, T, N], rows sum to 1."""
        raise NotImplementedError

    def reference(self) -> "Policy":
        """The policy as it is now, frozen, which KL is measured against. It may share weights that are not trained."""
        raise NotImplementedError

    def trained_parameters(self) -> list[Parameter]:
        """The parameters that an update changes."""
        raise NotImplementedError

    def saved_parameters(self) -> dict[str, Parameter]:
        """The parameters that a checkpoint must hold, by their names in it."""
        return dict(self.parameters_and_names())
