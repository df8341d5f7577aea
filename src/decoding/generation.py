"""Generate completions token by token with static shapes: one graph of T steps, or one compiled step called T times.

Letters: B images, M rows (as many of each image), T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import ParameterTuple, Tensor, mutable, nn, ops

from src.models.policy import Policy
from src.runtime.compile_cache import Compile

Outputs = tuple[Tensor, Tensor, Tensor]  # completion_ids int32, completion_mask float32, and log-probs
Carried = tuple  # the state between steps; its first item is `alive`, float32 [M], 0 for rows that have ended


class Generation(nn.Cell):
    """A decoding method, defined by `begin`, `advance` and `result`. As a cell, it is one graph of all steps.

    Inputs: pixels [B, 3, H, W] or features [B, N, C], then random numbers if the method samples.
    """

    def __init__(self, policy: Policy, tokens: int) -> None:
        super().__init__()
        self.policy, self.tokens = policy, tokens
        self.end_check = policy.end_check
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
    start = compile_cell(f"{name}_start", Start(generation))
    steps: dict[int, Callable[..., Any]] = {}  # by rows, because a cache in place has their number

    def generate(inputs: Tensor, *draws: Tensor) -> Outputs:
        prefix, cache, token, carried = start(inputs, *draws)
        rows = token.shape[0]
        if rows not in steps:
            steps[rows] = compile_cell(f"{name}_step", Step(generation, rows))
        step = steps[rows]
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
            look = generation.end_check > 0 and (position + 1) % generation.end_check == 0
            ended = look and not np.any(carried[0].asnumpy())
        return generation.result(carried, columns)

    return generate


def _changing(value: Any) -> Any:
    """Mark the tensors of a tuple as inputs: they would count as constants, and each call would compile again."""
    return mutable(value) if isinstance(value, tuple) and value else value


class Start(nn.Cell):
    """Everything before the first step."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self.generation = generation

    def construct(self, inputs: Tensor, *draws: Tensor) -> tuple[Any, Any, Tensor, Carried]:
        return self.generation.start(inputs, *draws)


class Step(nn.Cell):
    """One step of M = `rows` rows. Inputs: token int32 [M], position int32 [], prefix, cache, and the carried state."""

    def __init__(self, generation: Generation, rows: int) -> None:
        super().__init__()
        self.generation = generation
        in_place = generation.policy.allocate(rows, generation.tokens)
        self.in_place = ParameterTuple(in_place) if in_place else ()

    def construct(
        self, token: Tensor, position: Tensor, prefix: Any, cache: Any, carried: Carried
    ) -> tuple[Tensor, Any, Carried, tuple[Tensor, ...]]:
        policy = self.generation.policy
        in_place = self.in_place
        if len(in_place) > 0:
            cache = in_place
        hidden, cache = policy.step(token, position, prefix, cache)
        token, parents, carried, column = self.generation.advance(policy.logits(hidden), position, carried)
        if len(in_place) > 0:
            token = ops.depend(token, policy.store(in_place, cache, position))
            if parents is not None:
                token = ops.depend(token, policy.reorder(in_place, parents))
            return token, (), carried, column
        if parents is not None:
            cache = policy.reorder(cache, parents)
        return token, cache, carried, column


def column_of(table: Tensor, position: int | Tensor) -> Tensor:
    """Return column `position` of a table [M, T] as [M, 1]."""
    if isinstance(position, int):
        return ops.slice(table, (0, position), (table.shape[0], 1))
    return ops.gather(table, ops.reshape(position, (1,)), 1)
