"""The policy interface: everything that decoding, losses, training and evaluation know about a captioning model.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, N image tokens, D width, V vocabulary.
"""

from typing import Any

from mindspore import Parameter, Tensor, nn

from src.data.tokenizer import TokenIds

Prefix = Any  # an image as the policy holds it: a tensor, or nested tuples of tensors
Cache = Any  # the tokens of each row so far, in the same form


class Policy(nn.Cell):
    """A captioning model in evaluation mode. Graph mode compiles its methods, so they obey the rules of `construct`.

    Attributes:
        token_ids: the ids that may be sampled, and the special ids.
        width: D.
        encoder: the cell from pixels [B, 3, H, W] to features [B, N, C], with `tokens` (N) and `channels` (C).
        cached: True if `inputs` are float16 features computed before training, False if they are pixels.
        unrolled: if True, the sampler is one graph of T steps, and each step may have its own shapes. If False, `step`
            is compiled once and called T times; its position is then a tensor.
        end_check: if not unrolled, steps between looks at whether all completions have ended; 0: never.
        base: digest of what a checkpoint leaves out: constants and, with adapters, weights of pretrained files; None if
            it holds everything.
        chunk_rows: tokens whose logits a loss computes at once, from `head`; 0: all, from `logits`.
        dropout_sites: the drop rate at each place where CE applies dropout to [M, T, D]; empty without dropout.
    """

    token_ids: TokenIds
    width: int
    encoder: nn.Cell
    cached: bool
    unrolled = True
    end_check = 8
    chunk_rows = 0
    base: str | None = None
    dropout_sites: tuple[float, ...] = ()

    def prefix(self, inputs: Tensor) -> Prefix:
        """Compute what the rows of a group share, once per image, from the pixels or features of B images."""
        raise NotImplementedError

    def empty_prefix(self, images: int) -> Prefix:
        """Return zero arrays in the shapes of a prefix, with which a step is compiled; for policies not unrolled."""
        raise NotImplementedError

    def hidden(self, prefix: Prefix, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Teacher forcing: completion_ids int32 [M, T] -> hidden states [M, T, D]; row t predicts token t.

        keep: dropout factors [M, T, D] for each of `dropout_sites`, or None to drop nothing.
        """
        raise NotImplementedError

    def allocate(self, rows: int, tokens: int) -> tuple[Parameter, ...]:
        """Return the memory for a cache in place, of M = `rows` completions of T tokens; () if there is none.

        With it, `step` and `reorder` get this memory as their cache, `step` returns what `store` has to write, and
        `reorder` a tensor that depends on its writes.
        """
        return ()

    def store(self, in_place: tuple[Parameter, ...], cache: Cache, position: Tensor) -> Tensor:
        """Write what `step` returned for `position` in place; returns a tensor that depends on the writes."""
        raise NotImplementedError

    def start(self, prefix: Prefix, rows: int) -> Cache:
        """Return the cache of M = `rows` empty completions."""
        raise NotImplementedError

    def step(self, token: Tensor, position: int | Tensor, prefix: Prefix, cache: Cache) -> tuple[Tensor, Cache]:
        """Advance every row by one token: token int32 [M] at `position` (BOS at 0) -> hidden [M, D] and the new cache.

        A policy that writes its cache in place returns the same cache.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> logits float32 [R, V], -1e9 or less for tokens that are not allowed."""
        raise NotImplementedError

    def head(self) -> tuple[Parameter, Tensor]:
        """Return weight float32 [V, D] and bias float32 [V] of the logits; for policies with `chunk_rows`."""
        raise NotImplementedError

    def reorder(self, cache: Cache, parents: Tensor) -> Cache:
        """Return the cache whose row m is row parents[m] (int32 [M]) of `cache`, as beam search needs it."""
        raise NotImplementedError

    def attention(self, prefix: Prefix, completion_ids: Tensor) -> Tensor:
        """Attention of each token of completion_ids int32 [M, T] to its image: float32 [M, T, N]; rows sum to 1."""
        raise NotImplementedError

    def reference(self) -> "Policy":
        """Return a frozen policy with the present weights, for the KL term. It may share untrained weights."""
        raise NotImplementedError

    def trained_parameters(self) -> list[Parameter]:
        """Return the parameters that an update changes."""
        raise NotImplementedError

    def part_of(self, parameter: Parameter) -> str:
        """Return "projector" or "adapter" for a trained parameter that may have a learning rate of its own, else ""."""
        return ""

    def saved_parameters(self) -> dict[str, Parameter]:
        """Return the parameters that a checkpoint must hold, by their names in the file."""
        return dict(self.parameters_and_names())
