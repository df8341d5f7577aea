"""Beam search with static shapes and a key/value cache that follows its beams.

Letters: B images, K beams, M = B*K rows (row = b*K + k), T tokens, V vocabulary.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, ops

from src.decoding.generation import Carried, Generation, Outputs, column_of
from src.models.kernels import MASKED
from src.models.policy import Policy


class BeamDecoder(Generation):
    """The completion of highest log-prob / length^length_penalty among K beams (Wu et al. 2016, without their 5s).

    A beam that has produced an end token keeps its score and its place as long as no other overtakes it. With
    `block_trigrams` no beam repeats three tokens in a row that it already holds (Paulus et al. 2018, section 2.5).
    Returns completion_ids int32 [B, T] (PAD behind the end), completion_mask float32 [B, T], and the best beam's
    sequence_logprob float32 [B].
    """

    def __init__(
        self, policy: Policy, tokens: int, beams: int, length_penalty: float = 0.0, block_trigrams: bool = False
    ) -> None:
        super().__init__(policy, tokens)
        self.beams = beams
        self.length_penalty = length_penalty
        self.block_trigrams = block_trigrams
        self.vocab = len(policy.token_ids.allowed)
        self.only_pad = Tensor(np.where(np.arange(self.vocab) == self.pad_id, 0, MASKED)[None], mstype.float32)

    def begin(self, images: int, *draws: Tensor) -> Carried:
        rows = images * self.beams
        # All beams start alike: only the first counts, or every beam would hold the same caption.
        scores = ops.cast(ops.arange(self.beams) > 0, mstype.float32).reshape(1, self.beams) * MASKED
        scores = ops.broadcast_to(scores, (images, self.beams)).reshape(-1)
        history = ops.full((rows, self.tokens), self.pad_id, dtype=mstype.int32)
        return ops.ones((rows,), mstype.float32), scores, ops.zeros((rows,), mstype.float32), history

    def advance(
        self, logits: Tensor, position: int | Tensor, carried: Carried
    ) -> tuple[Tensor, Tensor, Carried, tuple[Tensor, ...]]:
        alive, scores, lengths, history = carried
        beams, vocab = self.beams, self.vocab
        images = alive.shape[0] // beams
        logprobs = ops.log_softmax(logits, -1)  # [M, V]
        if self.block_trigrams and self.tokens > 2:
            logprobs = logprobs + self.repeated_trigrams(history, position)
        running = ops.expand_dims(alive, 1) > 0
        totals = ops.expand_dims(scores, 1) + ops.where(running, logprobs, self.only_pad)
        new_lengths = lengths + alive
        ranks = totals
        if self.length_penalty != 0:
            ranks = totals / ops.expand_dims(new_lengths**self.length_penalty, 1)
        flat = ops.topk(ranks.reshape(images, beams * vocab), beams)[1]  # [B, K], best first
        parents = (_first_rows(images, beams) + ops.floor_divide(flat, vocab)).reshape(-1)
        token = ops.cast((flat % vocab).reshape(-1), mstype.int32)
        scores = ops.gather_elements(totals.reshape(images, beams * vocab), 1, flat).reshape(-1)
        alive = ops.gather(alive, parents, 0) * ops.gather(self.goes_on, token, 0)
        place = ops.cast(ops.arange(self.tokens) == position, mstype.int32)  # a product writes the column, shapes stay
        history = ops.gather(history, parents, 0) * (1 - place) + ops.expand_dims(token, 1) * place
        return token, parents, (alive, scores, ops.gather(new_lengths, parents, 0), history), ()

    def result(self, carried: Carried, columns: tuple[Tensor, ...]) -> Outputs:
        _, scores, lengths, history = carried
        best = _first_rows(scores.shape[0] // self.beams, self.beams).reshape(-1)
        mask = ops.arange(self.tokens).reshape(1, -1) < ops.expand_dims(ops.gather(lengths, best, 0), 1)
        return ops.gather(history, best, 0), ops.cast(mask, mstype.float32), ops.gather(scores, best, 0)

    def repeated_trigrams(self, history: Tensor, position: int | Tensor) -> Tensor:
        """[M, V]: MASKED where a token at `position` would end a trigram that history int32 [M, T] already holds."""
        padded = ops.concat((history[:, :2], history), 1)  # before two tokens there is nothing to compare
        before, last = column_of(padded, position), column_of(padded, position + 1)
        held = ops.arange(2, self.tokens) < position  # trigrams by their end
        same = ops.logical_and(history[:, :-2] == before, history[:, 1:-1] == last)
        updates = ops.cast(ops.logical_and(same, held), mstype.float32) * MASKED  # [M, T-2]
        zeros = ops.zeros((history.shape[0], self.vocab), mstype.float32)
        return ops.tensor_scatter_elements(zeros, history[:, 2:], updates, axis=1, reduction="add")


def _first_rows(images: int, beams: int) -> Tensor:
    """int32 [B, 1]: the row of each image's first beam."""
    return ops.expand_dims(ops.arange(images, dtype=mstype.int32), 1) * beams
