"""Generate completions token by token with static shapes: one graph of T steps, or one compiled step called T times.

Letters: B images, M rows (as many of each image), T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, mutable, nn, ops

from src.models.policy import Policy
from src.runtime.compile_cache import Compile

Outputs = tuple[Tensor, Tensor, Tensor]  # completion_ids int32, completion_mask float32, and log-probs
Carried = tuple  # the state between steps; its first item is `alive`, float32 [M], 0 for rows that have ended
_LOOK = 8  # steps between looks at whether all rows have ended


class Generation(nn.Cell):
    """A decoding method, defined by `begin`, `advance` and `result`. As a cell, it is one graph of all steps.

    Inputs: pixels [B, 3, H, W] or features [B, N, C], then random numbers if the method samples.
    """

    def __init__(self, policy: Policy, tokens: int) -> None:
        super().__init__()
        self.policy = policy
        self.tokens = tokens
        ids = policy.token_ids
        self.pad_id, self.bos_id = ids.pad, ids.bos
        self.goes_on = Tensor(~np.isin(np.arange(len(ids.allowed)), ids.eos), mstype.float32)  # [V], 0 for end tokens

    def begin(self, images: int, *draws: Tensor) -> Carried:
        """Return the state carried into the first step."""
        raise NotImplementedError

    def advance(
        self, logits: Tensor, position: int | Tensor, carried: Carried
    ) -> tuple[Tensor, Tensor | None, Carried, tuple[Tensor, ...]]:
        """From logits [M, V], return the next token [M], the row that each row continues (None: its own), the state
        carried on, and the columns that this step adds to the result."""
        raise NotImplementedError

    def result(self, carried: Carried, columns: tuple[Tensor, ...]) -> Outputs:
        """Return the outputs, from the state after the last step and the columns of all steps."""
        raise NotImplementedError

    def construct(self, inputs: Tensor, *draws: Tensor) -> Outputs:
        policy = self.policy
        prefix, cache, token, carried = self.start(inputs, *draws)
        logits = policy.logits  # bound once: a lookup inside the loop compiles it again in every step
        columns: tuple[Tensor, ...] = ()
        for position in range(self.tokens):
            hidden, cache = policy.step(token, position, prefix, cache)
            token, parents, carried, column = self.advance(logits(hidden), position, carried)
            columns += column
            if parents is not None:
                cache = policy.reorder(cache, parents)
        return self.result(carried, columns)

    def start(self, inputs: Tensor, *draws: Tensor) -> tuple[Any, Any, Tensor, Carried]:
        """Return prefix, cache, first token int32 [M] and the carried state."""
        carried = self.begin(inputs.shape[0], *draws)
        rows = carried[0].shape[0]
        prefix = self.policy.prefix(inputs)
        token = ops.full((rows,), self.bos_id, dtype=mstype.int32)
        return prefix, self.policy.start(prefix, rows), token, carried


def compile_generation(name: str, generation: Generation, compile_cell: Compile) -> Callable[..., Outputs]:
    """Compile a decoding method as its policy requires, and return it as a function of its inputs."""
    if generation.policy.unrolled:
        return compile_cell(name, generation)
    start = compile_cell(f"{name}_start", _Start(generation))
    step = compile_cell(f"{name}_step", _Step(generation))

    def generate(inputs: Tensor, *draws: Tensor) -> Outputs:
        prefix, cache, token, carried = start(inputs, *draws)
        prefix = _changing(prefix)
        columns: tuple[Tensor, ...] = ()
        ended = False
        for position in range(generation.tokens):
            place = Tensor(position, mstype.int32)
            token, cache, carried, column = step(token, place, prefix, _changing(cache), _changing(carried))
            columns += column
            if ended:  # all further columns are PAD, like this one
                columns += column * (generation.tokens - position - 1)
                break
            ended = (position + 1) % _LOOK == 0 and not np.any(carried[0].asnumpy())
        return generation.result(carried, columns)

    return generate


def _changing(value: Any) -> Any:
    """Mark the tensors of a tuple as inputs: they would count as constants, and each call would compile again."""
    return mutable(value) if isinstance(value, tuple) and value else value


class _Start(nn.Cell):
    """Everything before the first step."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self.generation = generation

    def construct(self, inputs: Tensor, *draws: Tensor) -> tuple[Any, Any, Tensor, Carried]:
        return self.generation.start(inputs, *draws)


class _Step(nn.Cell):
    """One step. Inputs: token int32 [M], position int32 [], prefix, cache, and the carried state."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self.generation = generation

    def construct(
        self, token: Tensor, position: Tensor, prefix: Any, cache: Any, carried: Carried
    ) -> tuple[Tensor, Any, Carried, tuple[Tensor, ...]]:
        policy = self.generation.policy
        hidden, cache = policy.step(token, position, prefix, cache)
        token, parents, carried, column = self.generation.advance(policy.logits(hidden), position, carried)
        if parents is not None:
            cache = policy.reorder(cache, parents)
        return token, cache, carried, column


def column_of(table: Tensor, position: int | Tensor) -> Tensor:
    """Return column `position` of a table [M, T] as [M, 1]."""
    if isinstance(position, int):
        return ops.slice(table, (0, position), (table.shape[0], 1))
    return ops.gather(table, ops.reshape(position, (1,)), 1)
