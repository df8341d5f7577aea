"""A pretrained causal language model (Llama, Qwen2) whose completions share the prefix of their image.

Letters: B images, G group size, M = B*G rows (row = b*G + g), P prefix tokens, T completion tokens, D width, K heads of
keys, Q heads of queries for each, H = K*Q, d head size, V vocabulary.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.models import kernels
from src.models.kernels import MASKED
from src.models.vision_language.adapters import LoRA
from src.models.vision_language.architecture import LanguageSizes
from src.models.vision_language.layer import Layer, RMSNorm, attention_weights

Keys = tuple[Tensor, ...]  # keys and values of layer 0, then of layer 1, ...: [K*B, P, d]


class LanguageModel(nn.Cell):
    """Embedding, layers, final norm, and logits.

    positions: int [3 or 1, P + T], the rotary positions of the prefix, then of a completion; three rows where image
    tokens have a time, a row and a column. prompt: P. dtype: of the products but those with the vocabulary, and of the
    layers' weights that adapters leave as they are.
    """

    def __init__(
        self,
        sizes: LanguageSizes,
        positions: np.ndarray,
        prompt: int,
        dtype: mstype.TensorType,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        self.sizes, self.dtype, self.prompt = sizes, dtype, prompt
        table = np.zeros((sizes.vocab, sizes.width), np.float32)
        self.embedding = Parameter(table, name="embedding")  # in half precision, each step would convert it for logits
        self.layers = nn.CellList([Layer(sizes, dtype, lora) for _ in range(sizes.layers)])
        self.norm = RMSNorm(sizes.width, sizes.eps)
        self.output = self.embedding
        if not sizes.tied:
            self.output = Parameter(table, name="output")
        angles = rotary_angles(sizes, positions)  # [P + T, d]
        self.cosines, self.sines = Tensor(np.cos(angles), dtype), Tensor(np.sin(angles), dtype)
        longest = max(prompt, positions.shape[1] - prompt)
        self.future = Tensor(np.triu(np.full((longest, longest), MASKED), 1), mstype.float32)
        self.not_past = Tensor(np.triu(np.full((longest, longest), MASKED)), mstype.float32)
        self.repeated = kernels.repeated()
        self.matmul = ops.MatMul(transpose_b=True)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids int32 of any shape -> embeddings [..., D]."""
        return ops.cast(ops.gather(self.embedding, ids, 0), self.dtype)

    def prefix(self, embeddings: Tensor) -> Keys:
        """Compute the keys and values of each image's prefix from embeddings [B, P, D]."""
        images, tokens, width = embeddings.shape
        tables = self.tables(images, self.cosines[:tokens], self.sines[:tokens], self.future[:tokens, :tokens])
        x = embeddings.reshape(-1, width)
        keys: Keys = ()
        for layer in self.layers:
            x, key, value = layer(x, tables, (), (), None)
            keys += (key, value)
        return keys

    def hidden(self, prefix: Keys, inputs: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Teacher forcing: inputs int32 [M, T] (the last prompt token first) -> hidden states [M, T, D].

        keep: dropout factors [M, T, D] of the adapters' inputs, one for each layer, or None.
        """
        x, _ = self._states(prefix, inputs, keep, len(self.layers))
        return self.norm(x).reshape(*inputs.shape, -1)

    def _states(
        self, prefix: Keys, inputs: Tensor, keep: tuple[Tensor, ...] | None, layers: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the first `layers` layers make of the inputs, [M*T, D], and the tables that they share."""
        rows, tokens = inputs.shape
        first = self.prompt
        cosines, sines = self.cosines[first : first + tokens], self.sines[first : first + tokens]
        tables = self.tables(rows, cosines, sines, self.future[:tokens, :tokens])
        x = self.embed(inputs.reshape(-1))
        for index in range(layers):
            dropped = None if keep is None else keep[index].reshape(x.shape)
            x = self.layers[index](x, tables, prefix[2 * index : 2 * index + 2], (), dropped)
        return x, tables

    def attention(self, prefix: Keys, inputs: Tensor) -> Tensor:
        """Attention of the last layer to the prefix, mean over heads: inputs int32 [M, T] -> float32 [M, T, P]."""
        rows, tokens = inputs.shape
        last = self.layers[-1]
        x, tables = self._states(prefix, inputs, None, len(self.layers) - 1)
        query, key, _ = last.heads_of(x, tables, None)
        own = key.reshape(-1, tokens, self.sizes.head_size)
        weights = attention_weights(query, ((*prefix[-2:], None), (own, own, tables[-1])))[0]
        weights = weights.reshape(self.sizes.key_heads, rows, -1, tokens, self.prompt)
        return ops.mean(ops.mean(weights, 2), 0)

    def allocate(self, rows: int, tokens: int) -> tuple[Parameter, ...]:
        """Return empty keys and values [K*M*T, d] of every layer."""
        shape = (self.sizes.key_heads * rows * tokens, self.sizes.head_size)
        return tuple(
            Parameter(Tensor(np.zeros(shape, np.float32), self.dtype), name=f"cache{place}", requires_grad=False)
            for place in range(2 * len(self.layers))
        )

    def step(self, token: Tensor, position: Tensor, prefix: Keys, caches: tuple[Parameter, ...]) -> tuple[Tensor, Keys]:
        """Advance every row by one token, int32 [M], at `position`: -> hidden [M, D], and what `store` has to write.

        Nothing is written before the logits are computed: a weight that is read before and after a write is copied.
        """
        rows, size = token.shape[0], self.sizes.head_size
        groups = self.sizes.key_heads * rows
        tokens = caches[0].shape[0] // groups
        position = ops.reshape(position, (1,))
        cosines, sines = (ops.gather(table, position + self.prompt, 0) for table in (self.cosines, self.sines))
        tables = self.tables(rows, cosines, sines, ops.gather(self.not_past[:tokens, :tokens], position, 0))
        x = self.embed(token)
        new: Keys = ()
        for index, layer in enumerate(self.layers):
            past = (
                caches[2 * index].reshape(groups, tokens, size),
                caches[2 * index + 1].reshape(groups, tokens, size),
            )
            x, key, value = layer(x, tables, prefix[2 * index : 2 * index + 2], past, None)
            new += (key, value)
        return self.norm(x), new

    def store(self, caches: tuple[Parameter, ...], new: Keys, position: Tensor) -> Tensor:
        """Write the keys and values of a step's token in place; returns a tensor that depends on it."""
        groups, size = new[0].shape[0], self.sizes.head_size
        tokens = caches[0].shape[0] // groups
        place = _numbers(groups) * tokens + ops.reshape(position, (1,))
        done = place
        for cache, values in zip(caches, new):
            done = ops.depend(done, ops.scatter_update(cache, place, values.reshape(groups, size)))
        return done

    def reorder(self, caches: tuple[Parameter, ...], parents: Tensor) -> Tensor:
        """Move the rows of all caches in place; returns a tensor that depends on it."""
        done = parents
        for cache in caches:
            rows = cache.reshape(self.sizes.key_heads, parents.shape[0], -1)
            done = ops.depend(done, ops.assign(cache, ops.gather(rows, parents, 1).reshape(cache.shape)))
        return done

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> float32 [R, V]."""
        return self.matmul(ops.cast(hidden, mstype.float32), self.output)

    def tables(self, rows: int, cosines: Tensor, sines: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """What all layers share for L tokens of each of M rows, from tables [L, d] and the mask [L, L'] of own tokens.

        Returns order and its inverse, int32 [n*(H+2K)], from the rows of the fused projection to those of q, k and v;
        order and inverse, int32 [n*H], from attended queries to the output projection; cosines and sines
        [n*(H+K), d] of q and k; the mask [K*M, Q*L, L'].
        """
        heads, keys = self.sizes.heads, self.sizes.key_heads
        group = heads // keys
        length = mask.shape[0]
        n = rows * length
        grid = _numbers(n * (heads + 2 * keys)).reshape(rows, length, heads + 2 * keys)
        q = grid[:, :, :heads].reshape(rows, length, keys, group).transpose(2, 0, 3, 1)
        kv = grid[:, :, heads:].reshape(rows, length, 2, keys).transpose(2, 3, 0, 1)
        order = ops.concat((q.reshape(-1), kv.reshape(-1)))
        back = _numbers(n * heads).reshape(keys, rows, group, length).transpose(1, 3, 0, 2).reshape(rows, length, heads)
        kv = _numbers(2 * n * keys).reshape(2, keys, rows, length).transpose(2, 3, 0, 1).reshape(rows, length, 2 * keys)
        inverse = ops.concat((back, kv + n * heads), -1).reshape(-1)
        forth = _numbers(n * heads).reshape(rows, length, keys, group).transpose(2, 0, 3, 1).reshape(-1)
        cosines, sines = (ops.tile(table, (rows * (heads + keys), 1)) for table in (cosines, sines))
        mask = self.repeated(ops.expand_dims(ops.tile(mask, (group, 1)), 0), keys * rows)
        return order, inverse, back.reshape(-1), forth, cosines, sines, mask


def _numbers(count: int) -> Tensor:
    return ops.arange(count, dtype=mstype.int32)


def rotary_angles(sizes: LanguageSizes, positions: np.ndarray) -> np.ndarray:
    """float64 [n, d] from positions int [3 or 1, n]: position times frequency, for both halves of a head.

    With three rows, the frequencies of each of `sizes.sections` turn with one of them (M-RoPE, arXiv:2409.12191).
    """
    row = np.repeat(np.arange(len(sizes.sections) or 1), sizes.sections or sizes.head_size // 2)  # of each frequency
    angles = positions[np.minimum(row, len(positions) - 1)].T * np.array(sizes.inverse_frequencies)
    return np.concatenate((angles, angles), 1)


def image_positions(before: int, side: int, following: int, *, turned: bool) -> np.ndarray:
    """Rotary positions int [3 or 1, before + side^2 + following] of text, a square image, and text.

    turned: M-RoPE (arXiv:2409.12191, section 2.1): image tokens share a time, and have a row and a column; the text
    after it continues from the largest of them. Otherwise every token has its own position.
    """
    if not turned:
        return np.arange(before + side**2 + following)[None]
    row, column = np.divmod(np.arange(side**2), side)
    text = np.arange(before)
    image = before + np.stack((np.zeros_like(row), row, column))
    behind = before + side + np.arange(following)
    return np.concatenate((np.tile(text, (3, 1)), image, np.tile(behind, (3, 1))), 1)
