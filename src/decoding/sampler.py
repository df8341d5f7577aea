"""Group sampling and greedy decoding, without a random operator.

Letters: B images, G group size, M rows, T tokens, V vocabulary.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, ops

from src.decoding.distribution import inverse_cdf, log, most_probable, policy_logits, select
from src.decoding.generation import Carried, Generation, Outputs, column_of
from src.models import kernels
from src.models.policy import Policy


class Sampling(Generation):
    """Decoding methods that choose one token of each row at a time.

    Returns completion_ids int32 [M, T] (PAD behind the end), completion_mask float32 [M, T] (1 for tokens chosen, up to
    and including the first end token), logprobs float32 [M, T] (0 under the mask).
    """

    def append(
        self, chosen: Tensor, logprob: Tensor, carried: Carried
    ) -> tuple[Tensor, None, Carried, tuple[Tensor, ...]]:
        """Append the chosen tokens [M] with log-probs [M] to the rows that have not ended."""
        alive = carried[0]
        token = ops.where(alive > 0, chosen, self.pad_id)
        return token, None, (self.alive_after(alive, token), *carried[1:]), (token, alive, logprob * alive)

    def result(self, carried: Carried, columns: tuple[tuple[Tensor, ...], ...]) -> Outputs:
        ids: tuple[Tensor, ...] = ()
        masks: tuple[Tensor, ...] = ()
        logprobs: tuple[Tensor, ...] = ()
        for token, alive, logprob in columns:
            ids += (token,)
            masks += (alive,)
            logprobs += (logprob,)
        return ops.stack(ids, 1), ops.stack(masks, 1), ops.stack(logprobs, 1)


class GroupSampler(Sampling):
    """Samples G completions per image by inverse CDF: a pure function of parameters, inputs and uniforms.

    Inputs: inputs, uniforms float32 [B, G, T] in [0, 1). M = B*G, row = b*G + g. With `greedy`, each
    group gets one more row at its end, the greedy completion (SCST's baseline), decoded in the same steps; M = B*(G+1).
    """

    def __init__(self, policy: Policy, tokens: int, *, temperature: float, top_k: int, greedy: bool = False) -> None:
        super().__init__(policy, tokens)
        self.last_allowed = int(np.flatnonzero(policy.token_ids.allowed)[-1])
        self.row_sums = kernels.row_sums()
        self.temperature = temperature
        self.top_k = top_k
        self.greedy = greedy

    def begin(self, images: int, *draws: Tensor) -> Carried:
        (uniforms,) = draws
        group_size = uniforms.shape[1]
        if self.greedy:
            uniforms = ops.concat((uniforms, ops.zeros((images, 1, self.tokens), mstype.float32)), 1)
        rows = uniforms.reshape(-1, self.tokens)  # [M, T]
        is_greedy = ops.concat((ops.zeros((images, group_size)), ops.ones((images, 1))), 1).reshape(-1)
        return ops.ones((rows.shape[0],), mstype.float32), rows, is_greedy

    def advance(
        self, logits: Tensor, position: int | Tensor, carried: Carried
    ) -> tuple[Tensor, None, Carried, tuple[Tensor, ...]]:
        _, uniforms, is_greedy = carried
        probabilities = ops.softmax(policy_logits(logits, self.temperature, self.top_k), -1)
        token = inverse_cdf(probabilities, column_of(uniforms, position), self.last_allowed, self.row_sums)
        if self.greedy:
            token = ops.where(is_greedy > 0, most_probable(logits), token)
        # Never log 0: a device may, very rarely, draw a zero-probability token, since it adds in another order.
        return self.append(token, log(ops.maximum(select(probabilities, token), 1e-30)), carried)


class GreedyDecoder(Sampling):
    """The most probable token at every step, one completion per image: M = B."""

    def begin(self, images: int, *draws: Tensor) -> Carried:
        return (ops.ones((images,), mstype.float32),)

    def advance(
        self, logits: Tensor, position: int | Tensor, carried: Carried
    ) -> tuple[Tensor, None, Carried, tuple[Tensor, ...]]:
        token = most_probable(logits)
        return self.append(token, log(select(ops.softmax(logits, -1), token)), carried)
