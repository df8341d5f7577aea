"""A layer of a pretrained causal language model, for whole sequences and single cached steps alike.

Letters: B images, G group size, M = B*G rows (row = b*G + g), P prefix tokens, L tokens of a row, T tokens of a
completion, n = M*L, D width, K heads of keys, Q heads of queries for each, H = K*Q, d head size.
Attention works on rows of width d in the order (k, m, q, token): then the queries of a group lie side by side for each
head of keys, and need neither a transposition nor a copy of the prefix.
"""

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, lazy_inline, nn, ops

from src.models import kernels, norms
from src.models.vision_language.adapters import LoRA, Projection
from src.models.vision_language.architecture import LanguageSizes

_SOFTMAX = ops.Softmax(-1)
_MATMUL = ops.MatMul()
_MATMUL_WITH_TRANSPOSED = ops.MatMul(transpose_b=True)
_PRODUCT = ops.BatchMatMul()
_PRODUCT_WITH_TRANSPOSED = ops.BatchMatMul(transpose_b=True)


class Layer(nn.Cell):
    """A pre-norm Transformer layer.

    Inputs: x [n, D]; the tables of `LanguageModel.tables`; the keys and values of the prefix [K*B, P, d] and those of
    the tokens before [K*M, T, d], or (); keep: dropout factors [n, D] or None. Returns x [n, D]; unless it has a prefix
    and no tokens before, also keys and values [K*M, L, d].
    """

    @lazy_inline(policy="front")
    def __init__(self, sizes: LanguageSizes, dtype: mstype.TensorType, lora: LoRA | None) -> None:
        super().__init__()
        s = sizes
        self.heads, self.key_heads, self.size = s.heads, s.key_heads, s.head_size
        q_width, k_width = s.heads * s.head_size, s.key_heads * s.head_size
        self.attention_norm = RMSNorm(s.width, s.eps)
        widths, qkv = (q_width, k_width, k_width), ("q_proj", "k_proj", "v_proj")
        self.qkv = Projection(s.width, widths, qkv, dtype, has_bias=s.qkv_bias, lora=lora)
        self.out = Projection(q_width, (s.width,), ("o_proj",), dtype, has_bias=s.out_bias, lora=lora)
        self.feed_forward_norm = RMSNorm(s.width, s.eps)
        gated, names = (s.feed_forward, s.feed_forward), ("gate_proj", "up_proj")
        self.gate_up = Projection(s.width, gated, names, dtype, has_bias=s.feed_forward_bias, lora=lora)
        self.down = Projection(
            s.feed_forward, (s.width,), ("down_proj",), dtype, has_bias=s.feed_forward_bias, lora=lora
        )
        self.swiglu = norms.swiglu()
        self.permute = kernels.Permutation()
        self.rotate = Rotation(s.head_size, dtype)

    def construct(self, x, tables, prefix, past, keep):  # type: ignore[no-untyped-def]
        _, _, back, back_inverse, _, _, mask = tables
        n = x.shape[0]
        query, key, value = self.heads_of(x, tables, keep)
        if len(past) > 0:  # one token, which sees itself
            own = (key.reshape(-1, 1, self.size), value.reshape(-1, 1, self.size), None)
            blocks = (*prefix, None), (*past, mask), own
        else:
            length = mask.shape[-1]
            own = (key.reshape(-1, length, self.size), value.reshape(-1, length, self.size), mask)
            blocks = ((*prefix, None), own) if len(prefix) > 0 else (own,)
        attended = _attend(query, blocks)
        x = x + self.out(self.permute(attended, back, back_inverse).reshape(n, -1), None)
        gated = self.gate_up(self.feed_forward_norm(x), keep)
        x = x + self.down(self.swiglu(gated), None)
        if len(prefix) > 0 and len(past) == 0:
            return x
        return x, own[0], own[1]

    def heads_of(self, x, tables, keep):  # type: ignore[no-untyped-def]
        """x [n, D] -> queries [n*H, d], keys and values [n*K, d], turned by their positions."""
        order, order_inverse, _, _, cosines, sines, _ = tables
        n = x.shape[0]
        fused = self.qkv(self.attention_norm(x), keep).reshape(-1, self.size)
        fused = self.permute(fused, order, order_inverse)
        turned, value = ops.split(fused, (n * (self.heads + self.key_heads), n * self.key_heads))
        query, key = ops.split(self.rotate(turned, cosines, sines), (n * self.heads, n * self.key_heads))
        return query, key, value


class Rotation(nn.Cell):
    """x cos + (-x2, x1) sin over rows x = (x1, x2) [n, d], with tables [n, d] (Su et al. 2021, arXiv:2104.09864).

    Its gradient needs the tables alone.
    """

    def __init__(self, size: int, dtype: mstype.TensorType) -> None:
        super().__init__()
        middle = size // 2
        turn = np.zeros((size, size), np.float32)  # x @ turn = (-x2, x1)
        turn[np.arange(middle) + middle, np.arange(middle)] = -1.0
        turn[np.arange(middle), np.arange(middle) + middle] = 1.0
        self.turn = Tensor(turn, dtype)

    def construct(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return x * cosines + _MATMUL(x, self.turn) * sines

    def bprop(self, x: Tensor, cosines: Tensor, sines: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        gradient = dout * cosines + _MATMUL_WITH_TRANSPOSED(dout * sines, self.turn)
        return gradient, ops.zeros_like(cosines), ops.zeros_like(sines)


Block = tuple[Tensor, Tensor, Tensor | None]  # keys, values [K*B or K*M, tokens, d]; mask [K*M, Q*L, tokens] or None


def _attend(query: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Attention of query rows [K*M*Q*L, d] to all blocks together -> [K*M*Q*L, d]."""
    attended = None
    for weights, (_, value, _) in zip(attention_weights(query, blocks), blocks):
        seen = _PRODUCT(ops.cast(weights, value.dtype), value).reshape(query.shape)
        attended = seen if attended is None else attended + seen
    return attended


def attention_weights(query: Tensor, blocks: tuple[Block, ...]) -> tuple[Tensor, ...]:
    """float32 weights of each block, [its rows, -1, tokens], under one softmax over all blocks."""
    size = query.shape[-1]
    rows = blocks[-1][0].shape[0]  # K*M
    scores: tuple[Tensor, ...] = ()
    for key, _, mask in blocks:
        product = _PRODUCT_WITH_TRANSPOSED(query.reshape(key.shape[0], -1, size), key)
        score = (ops.cast(product, mstype.float32) * size**-0.5).reshape(rows, -1, key.shape[1])
        scores += (score if mask is None else score + mask,)
    if len(scores) == 1:
        return (_SOFTMAX(scores[0]),)
    parts = ops.split(_SOFTMAX(ops.concat(scores, -1)), [score.shape[-1] for score in scores], -1)
    weights: tuple[Tensor, ...] = ()
    for part, (key, _, _) in zip(parts, blocks):
        weights += (part.reshape(key.shape[0], -1, key.shape[1]),)
    return weights


class RMSNorm(nn.Cell):
    """x [n, D] -> [n, D]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = Parameter(np.ones(width, np.float32), name="weight")
        self.normalize = norms.rms_norm(eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight)
