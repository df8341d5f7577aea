"""Group sampling and greedy decoding: one graph each, with a static key/value cache and no random operator.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, D width, V vocabulary.
"""

from collections.abc import Callable

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src.decoding.distribution import inverse_cdf, log, most_probable, policy_logits, select
from src.models.captioner.policy import Captioner


def generate(
    captioner: Captioner,
    inputs: Tensor,
    rows: int,
    tokens: int,
    specials: tuple[int, int, int],
    choose: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode `tokens` steps for `rows` rows; `choose(logits [M, V], t)` returns tokens [M] and log-probs [M].

    specials: ids of PAD, BOS, EOS. Returns completion_ids int32 [M, T] (PAD behind the EOS), completion_mask
    float32 [M, T] (1 for tokens chosen, up to and including the first EOS), logprobs float32 [M, T] (0 under the mask).
    """
    pad_id, bos_id, eos_id = specials
    decoder = captioner.decoder
    logits = decoder.logits  # a method that a loop looks up is compiled anew in every step
    memory = captioner.memory(inputs)
    caches: tuple[tuple[Tensor, Tensor], ...] = ()
    token = ops.full((rows,), bos_id, dtype=mstype.int32)
    alive = ops.ones((rows,), mstype.float32)
    all_ids: tuple[Tensor, ...] = ()
    all_masks: tuple[Tensor, ...] = ()
    all_logprobs: tuple[Tensor, ...] = ()
    for t in range(tokens):
        hidden, caches = decoder.step(token, t, memory, caches)
        chosen, logprob = choose(logits(hidden), t)
        token = ops.where(alive > 0, chosen, pad_id)
        all_ids += (token,)
        all_masks += (alive,)
        all_logprobs += (logprob * alive,)
        alive = alive * ops.cast(token != eos_id, mstype.float32)
    return ops.stack(all_ids, 1), ops.stack(all_masks, 1), ops.stack(all_logprobs, 1)


class GroupSampler(nn.Cell):
    """Samples G completions per image by inverse CDF: a pure function of parameters, inputs and uniforms.

    Inputs: inputs (pixels [B, 3, H, W] or features [B, N, C]), uniforms float32 [B, G, T] in [0, 1).
    Returns completion_ids, completion_mask and old_logprobs, each [M, T], as `generate`; with `greedy` also the ids and
    the mask, each [B, T], of the greedy completion of every image, SCST's baseline, decoded in the same steps.
    """

    def __init__(
        self,
        captioner: Captioner,
        specials: tuple[int, int, int],
        allowed: np.ndarray,
        temperature: float,
        top_k: int,
        greedy: bool = False,
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.specials = specials
        self.last_allowed = int(np.flatnonzero(allowed)[-1])
        self.temperature = temperature
        self.top_k = top_k
        self.greedy = greedy

    def construct(self, inputs: Tensor, uniforms: Tensor) -> tuple[Tensor, ...]:
        images, group_size, tokens = uniforms.shape
        is_greedy = ops.concat((ops.zeros((images, group_size)), ops.ones((images, 1))), 1).reshape(-1) > 0
        if self.greedy:
            uniforms = ops.concat((uniforms, ops.zeros((images, 1, tokens), mstype.float32)), 1)
        columns = uniforms.reshape(-1, tokens)  # [M, T], or [B*(G+1), T]

        def choose(logits: Tensor, t: int) -> tuple[Tensor, Tensor]:
            probabilities = ops.softmax(policy_logits(logits, self.temperature, self.top_k), -1)
            draws = ops.slice(columns, (0, t), (columns.shape[0], 1))
            token = inverse_cdf(probabilities, draws, self.last_allowed)
            if self.greedy:
                token = ops.where(is_greedy, most_probable(logits), token)
            # Never log 0: a device that adds in another order might draw a token of no probability, if hardly ever.
            return token, log(ops.maximum(select(probabilities, token), 1e-30))

        outputs = generate(self.captioner, inputs, columns.shape[0], tokens, self.specials, choose)
        if not self.greedy:
            return outputs
        ids, mask, logprobs = [output.reshape(images, group_size + 1, tokens) for output in outputs]
        sampled = [groups[:, :group_size].reshape(-1, tokens) for groups in (ids, mask, logprobs)]
        return *sampled, ids[:, group_size], mask[:, group_size]


class GreedyDecoder(nn.Cell):
    """The most probable token at every step, one completion per image.

    Inputs: pixels [B, 3, H, W] or features [B, N, C]. Returns completion_ids, completion_mask, logprobs, each [B, T].
    """

    def __init__(self, captioner: Captioner, specials: tuple[int, int, int], tokens: int) -> None:
        super().__init__()
        self.captioner = captioner
        self.specials = specials
        self.tokens = tokens

    def construct(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def choose(logits: Tensor, t: int) -> tuple[Tensor, Tensor]:
            token = most_probable(logits)
            return token, log(select(ops.softmax(logits, -1), token))

        return generate(self.captioner, inputs, inputs.shape[0], self.tokens, self.specials, choose)
