"""Caption decoder: a post-norm Transformer over image memory, teacher forced or one cached step at a time.

Letters as in src.models.layers; V is the vocabulary, T the longest caption.
"""

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config.schema import DecoderConfig
from src.models import kernels
from src.models.kernels import MASKED, attend, attention_weights
from src.models.layers import DecoderLayer, LayerNorm, Linear

Memory = tuple[tuple[Tensor, Tensor], ...]  # per layer: keys and values [B, H, N, d]


def shift_right(tokens: Tensor, bos_id: int) -> Tensor:
    """Decoder inputs int32 [M, T]: BOS, then all tokens but the last."""
    start = ops.full((tokens.shape[0], 1), bos_id, dtype=mstype.int32)
    return ops.concat((start, tokens[:, :-1]), 1)


class Decoder(nn.Cell):
    """Maps grid features and token ids to logits over the tokens that a caption may hold.

    Args: channels: width of the features; allowed: bool [V], False for tokens that are never produced; dtype: of the
    products but the last: a bfloat16 logit of 16 could be off by 0.06, and the ratio to the old policy with it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        channels: int,
        allowed: np.ndarray,
        dtype: mstype.TensorType = mstype.float32,
    ) -> None:
        super().__init__()
        width, vocab_size = config.width, len(allowed)
        self.width = width
        embedding_dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        rates = (embedding_dropout, *[config.dropout] * (3 * config.layers))
        self.dropout_sites = rates if max(rates) > 0 else ()
        self.memory_projection = Linear(channels, width, has_bias=False, dtype=dtype)
        self.memory_norm = LayerNorm(width)
        self.embedding = Parameter(initializer(Normal(1.0), (vocab_size, width)), name="embedding")
        self.positions = Parameter(initializer(Normal(1.0), (config.positions, width)), name="positions")
        self.layers = nn.CellList(
            [DecoderLayer(width, config.heads, config.feed_forward, dtype) for _ in range(config.layers)]
        )
        self.output = Linear(width, vocab_size)
        self.allowed_bias = Tensor(np.where(allowed, 0.0, MASKED), ms.float32)
        size = width // config.heads
        self.attend_causally = kernels.causal_attention(config.heads, size, dtype, config.positions)

    def memory(self, features: Tensor) -> Memory:
        """features [B, N, C], of any float type -> keys and values of every layer, once per image."""
        memory = self.memory_norm(self.memory_projection(features))  # [B, N, D]
        heads: Memory = ()
        for layer in self.layers:
            heads += (layer.memory_heads(memory),)
        return heads

    def hidden(self, inputs: Tensor, memory: Memory, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Teacher forcing: inputs int32 [M, L] (BOS first) -> hidden states [M, L, D].

        keep: 1 + 3*layers dropout factors [M, L, D] (embedding, then three per layer), or None.
        """
        return self.states(inputs, memory, keep)[-1]

    def states(self, inputs: Tensor, memory: Memory, keep: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """As `hidden`, and before it, for every layer, what its cross-attention is asked with: all [M, L, D]."""
        length = inputs.shape[1]
        x = ops.gather(self.embedding, inputs, 0) + self.positions[:length]
        if keep is not None:
            x = x * keep[0]
        states: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            query, key, value = layer.qkv(x)
            sites = None if keep is None else keep[1 + 3 * index : 4 + 3 * index]
            x = layer.after_self(x, self.attend_causally(query, key, value), sites)
            states += (x,)
            x = layer(x, memory[index], sites)
        return *states, x

    def attention(self, inputs: Tensor, memory: Memory) -> Tensor:
        """Cross-attention [M, L, N] of the tokens that inputs int32 [M, L] predict, mean over heads and layers."""
        states = self.states(inputs, memory)
        layers: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            key, _ = memory[index]
            weights = attention_weights(layer.cross_queries(states[index], key.shape[0]), key)  # [B, H, G*L, N]
            layers += (ops.mean(weights, 1).reshape(*inputs.shape, -1),)
        return ops.mean(ops.stack(layers), 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V], MASKED for tokens that are never produced."""
        return self.output(hidden, self.allowed_bias)

    def step(self, token: Tensor, position: int, memory: Memory, caches: tuple) -> tuple[Tensor, tuple]:
        """One token per row: token int32 [M] at `position` -> hidden [M, D] and the caches with its key and value.

        caches: per layer, keys and values [M, H, position, d] of the tokens before; () at position 0. In an unrolled
        graph every step has its own static shape, and attends to no more than there is.
        """
        x = ops.gather(self.embedding, token, 0) + ops.slice(self.positions, (position, 0), (1, self.width))
        x = ops.expand_dims(x, 1)  # [M, 1, D]
        updated: tuple[tuple[Tensor, Tensor], ...] = ()
        for index, layer in enumerate(self.layers):
            query, keys, values = layer.qkv(x)  # [M, H, 1, d]
            if position > 0:
                keys = ops.concat((caches[index][0], keys), 2)
                values = ops.concat((caches[index][1], values), 2)
            updated += ((keys, values),)
            x = layer.after_self(x, attend(query, keys, values), None)
            x = layer(x, memory[index], None)
        return ops.squeeze(x, 1), updated
