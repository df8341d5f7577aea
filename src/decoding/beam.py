"""Beam search: one graph with static shapes and a key/value cache that follows its beams.

Letters: B images, K beams, M = B*K rows (row = b*K + k), T tokens, V vocabulary.
"""

import mindspore.common.dtype as mstype
from mindspore import Tensor, nn, ops

from src.models.captioner.policy import Captioner
from src.models.layers import MASKED


class BeamDecoder(nn.Cell):
    """The completion of highest log-prob / length^length_penalty among K beams (Wu et al. 2016, without their 5s).

    A beam that has produced the EOS keeps its score and its place as long as no other overtakes it. With
    `block_trigrams` no beam repeats three tokens in a row that it already holds (Paulus et al. 2018, section 2.5).
    Inputs: pixels [B, 3, H, W] or features [B, N, C]. Returns completion_ids int32 [B, T] (PAD behind the EOS),
    completion_mask float32 [B, T], and the best beam's sequence_logprob float32 [B].
    """

    def __init__(
        self,
        captioner: Captioner,
        specials: tuple[int, int, int],
        tokens: int,
        beams: int,
        length_penalty: float = 0.0,
        block_trigrams: bool = False,
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.pad_id, self.bos_id, self.eos_id = specials
        self.tokens = tokens
        self.beams = beams
        self.length_penalty = length_penalty
        self.block_trigrams = block_trigrams

    def construct(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decoder, beams = self.captioner.decoder, self.beams
        memory = self.captioner.memory(inputs)
        images = inputs.shape[0]
        rows = images * beams
        first_rows = ops.expand_dims(ops.arange(images, dtype=mstype.int32), 1) * beams  # [B, 1]
        caches: tuple[tuple[Tensor, Tensor], ...] = ()
        token = ops.full((rows,), self.bos_id, dtype=mstype.int32)
        alive = ops.ones((rows,), mstype.float32)
        lengths = ops.zeros((rows,), mstype.float32)
        # All beams start alike: only the first counts, or every beam would hold the same caption.
        scores = ops.cast(ops.arange(beams) > 0, mstype.float32).reshape(1, beams) * MASKED
        scores = ops.broadcast_to(scores, (images, beams)).reshape(-1)
        history = ops.full((rows, self.tokens), self.pad_id, dtype=mstype.int32)
        vocab = decoder.allowed_bias.shape[0]
        logits = decoder.logits  # looked up once: see generate in sampler.py
        only_pad = ops.cast(ops.arange(vocab) != self.pad_id, mstype.float32).reshape(1, vocab) * MASKED
        for t in range(self.tokens):
            hidden, caches = decoder.step(token, t, memory, caches)
            logprobs = ops.log_softmax(logits(hidden), -1)  # [M, V]
            if self.block_trigrams and t >= 3:
                logprobs = logprobs + self.repeated_trigrams(history, t, vocab)
            running = ops.expand_dims(alive, 1) > 0
            totals = ops.expand_dims(scores, 1) + ops.where(running, logprobs, only_pad)
            new_lengths = lengths + alive
            ranks = totals
            if self.length_penalty != 0:
                ranks = totals / ops.expand_dims(new_lengths**self.length_penalty, 1)
            flat = ops.topk(ranks.reshape(images, beams * vocab), beams)[1]  # [B, K], best first
            parents = (first_rows + ops.floor_divide(flat, vocab)).reshape(-1)
            token = ops.cast((flat % vocab).reshape(-1), mstype.int32)
            scores = ops.gather_elements(totals.reshape(images, beams * vocab), 1, flat).reshape(-1)
            lengths = ops.gather(new_lengths, parents, 0)
            alive = ops.gather(alive, parents, 0) * ops.cast(token != self.eos_id, mstype.float32)
            place = ops.cast(ops.arange(self.tokens) == t, mstype.int32)  # a product writes the column, shapes stay
            history = ops.gather(history, parents, 0) * (1 - place) + ops.expand_dims(token, 1) * place
            moved: tuple[tuple[Tensor, Tensor], ...] = ()
            for key, value in caches:
                moved += ((ops.gather(key, parents, 0), ops.gather(value, parents, 0)),)
            caches = moved
        best = first_rows.reshape(-1)
        mask = ops.arange(self.tokens).reshape(1, -1) < ops.expand_dims(ops.gather(lengths, best, 0), 1)
        return ops.gather(history, best, 0), ops.cast(mask, mstype.float32), ops.gather(scores, best, 0)

    def repeated_trigrams(self, history: Tensor, t: int, vocab: int) -> Tensor:
        """[M, V]: MASKED where a token at position t would end a trigram that history int32 [M, T] already holds."""
        seen_first, seen_second, ends = history[:, : t - 2], history[:, 1 : t - 1], history[:, 2:t]
        same = ops.logical_and(seen_first == history[:, t - 2 : t - 1], seen_second == history[:, t - 1 : t])
        updates = ops.cast(same, mstype.float32) * MASKED  # [M, t-2]
        zeros = ops.zeros((history.shape[0], vocab), mstype.float32)
        return ops.tensor_scatter_elements(zeros, ends, updates, axis=1, reduction="add")
