"""Group sampling and greedy decoding, without a random operator.

Letters: B images, G group size, M rows, T tokens, V vocabulary.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, ops

from src.decoding.distribution import InverseCDF, Sampled, log, most_probable, policy_logits, select
from src.decoding.generation import Carried, Generation, Outputs, column_of
from src.models.policy import Policy


class Sampling(Generation):
    """Decoding methods that choose one token of each row at a time.

    Returns completion_ids int32 [M, T] (PAD behind the end), completion_mask float32 [M, T] (1 for tokens chosen, up to
    and including the first end token), logprobs float32 [M, T] (0 under the mask).
    """

    def append(self, alive: Tensor, chosen: Tensor, logprob: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Append the chosen tokens [M] with log-probs [M] to the rows that are alive; return tokens, alive, columns."""
        token = ops.where(alive > 0, chosen, self.pad_id)
        return token, alive * ops.gather(self.goes_on, token, 0), (token, alive, logprob * alive)

    def result(self, carried: Carried, columns: tuple[Tensor, ...]) -> Outputs:
        return ops.stack(columns[0::3], 1), ops.stack(columns[1::3], 1), ops.stack(columns[2::3], 1)


class GroupSampler(Sampling):
    """Samples G completions per image by inverse CDF: a pure function of parameters, inputs and uniforms.

    Inputs: inputs, uniforms float32 [B, G, T] in [0, 1). M = B*G, row = b*G + g. With `greedy`, each
    group gets one more row at its end, the greedy completion (SCST's baseline), decoded in the same steps; M = B*(G+1).
    """

    def __init__(self, policy: Policy, tokens: int, sampled: Sampled, *, greedy: bool = False) -> None:
        super().__init__(policy, tokens)
        self.draw = InverseCDF(int(np.flatnonzero(policy.token_ids.allowed)[-1]))
        self.sampled = sampled
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
        alive, uniforms, is_greedy = carried
        probabilities = ops.softmax(policy_logits(logits, self.sampled), -1)
        token = self.draw(probabilities, column_of(uniforms, position))
        if self.greedy:
            token = ops.where(is_greedy > 0, most_probable(logits), token)
        # Never log 0: a device may, very rarely, draw a zero-probability token, since it adds in another order.
        logprob = log(ops.maximum(select(probabilities, token), 1e-30))
        token, alive, column = self.append(alive, token, logprob)
        return token, None, (alive, uniforms, is_greedy), column


class GreedyDecoder(Sampling):
    """The most probable token at every step, one completion per image: M = B."""

    def begin(self, images: int, *draws: Tensor) -> Carried:
        return (ops.ones((images,), mstype.float32),)

    def advance(
        self, logits: Tensor, position: int | Tensor, carried: Carried
    ) -> tuple[Tensor, None, Carried, tuple[Tensor, ...]]:
        token = most_probable(logits)
        token, alive, column = self.append(carried[0], token, log(select(ops.softmax(logits, -1), token)))
        return token, None, (alive,), column
