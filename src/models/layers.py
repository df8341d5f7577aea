"""Layers of the decoder: attention that serves whole sequences and single cached steps alike.

Letters: B images, G group size, M = B*G rows (row = b*G + g), L tokens of a sequence, N image tokens, D width,
H heads, d = D/H.
"""

import mindspore.common.dtype as mstype
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.models import kernels, norms
from src.models.kernels import attend


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[R, L, D] -> [R, H, L, d]."""
    rows, length, width = x.shape
    if length == 1:
        return x.reshape(rows, heads, 1, width // heads)
    return x.reshape(rows, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Tensor) -> Tensor:
    """[R, H, L, d] -> [R, L, D]."""
    rows, heads, length, size = x.shape
    if length == 1:
        return x.reshape(rows, 1, heads * size)
    return x.transpose(0, 2, 1, 3).reshape(rows, length, heads * size)


class Linear(nn.Cell):
    """x [..., C] -> float32 [..., D], with Xavier-uniform weights and a bias that starts at 0.

    dtype: of the factors of the product; its result, the parameters and the bias are float32.
    """

    def __init__(
        self, channels: int, width: int, has_bias: bool = True, dtype: mstype.TensorType = mstype.float32
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = Parameter(initializer("xavier_uniform", (width, channels), mstype.float32))
        self.bias = Parameter(initializer("zeros", (width,), mstype.float32)) if has_bias else None
        self.matmul = ops.MatMul(transpose_b=True)  # no copy of the weight, as `weight.T` would make
        self.shift = kernels.bias_add()

    def construct(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """offset [D]: a constant beside the bias, which costs no pass of its own."""
        rows = self.matmul(ops.cast(x.reshape(-1, x.shape[-1]), self.dtype), ops.cast(self.weight, self.dtype))
        rows = ops.cast(rows, mstype.float32)
        if self.bias is not None:
            rows = self.shift(rows, self.bias if offset is None else self.bias + offset)
        return rows.reshape(*x.shape[:-1], -1)


class LayerNorm(nn.Cell):
    """Layer norm over the last axis."""

    def __init__(self, width: int, eps: float = norms.EPS) -> None:
        super().__init__()
        self.gamma = Parameter(initializer("ones", (width,), mstype.float32))
        self.beta = Parameter(initializer("zeros", (width,), mstype.float32))
        self.normalize = norms.layer_norm(eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.gamma, self.beta)


class DecoderLayer(nn.Cell):
    """Post-norm Transformer decoder layer whose memory is shared by the G rows of a group."""

    def __init__(self, width: int, heads: int, feed_forward: int, dtype: mstype.TensorType) -> None:
        super().__init__()
        self.heads = heads
        self.dtype = dtype
        self.self_qkv = Linear(width, 3 * width, dtype=dtype)
        self.self_out = Linear(width, width, dtype=dtype)
        self.cross_query = Linear(width, width, dtype=dtype)
        # A bias of the keys cancels in the softmax, one of the values is that of cross_out.
        self.cross_kv = Linear(width, 2 * width, has_bias=False, dtype=dtype)
        self.cross_out = Linear(width, width, dtype=dtype)
        self.expand = Linear(width, feed_forward, dtype=dtype)
        self.contract = Linear(feed_forward, width, dtype=dtype)
        self.self_norm = LayerNorm(width)
        self.cross_norm = LayerNorm(width)
        self.out_norm = LayerNorm(width)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [M, L, D] -> query, key and value of self-attention, each [M, H, L, d]."""
        query, key, value = ops.chunk(ops.cast(self.self_qkv(x), self.dtype), 3, -1)
        return split_heads(query, self.heads), split_heads(key, self.heads), split_heads(value, self.heads)

    def memory_heads(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory [B, N, D] -> keys and values, each [B, H, N, d], once per image."""
        key, value = ops.chunk(ops.cast(self.cross_kv(memory), self.dtype), 2, -1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def after_self(self, x: Tensor, attended: Tensor, keep: tuple[Tensor, ...] | None) -> Tensor:
        """Residual sum and norm behind self-attention: x [M, L, D] and attended [M, H, L, d] -> [M, L, D]."""
        update = self.self_out(merge_heads(attended))
        return self.self_norm(x + (update if keep is None else update * keep[0]))

    def cross_queries(self, x: Tensor, images: int) -> Tensor:
        """x [M, L, D] -> [B, H, G*L, d]: the G rows of a group are G*L queries on the keys of their image."""
        rows, length, width = x.shape
        query = ops.cast(self.cross_query(x), self.dtype).reshape(images, rows // images * length, width)  # [B, G*L, D]
        return split_heads(query, self.heads)

    def cross(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of x [M, L, D] to its image."""
        key, value = memory
        attended = merge_heads(attend(self.cross_queries(x, key.shape[0]), key, value))
        return self.cross_out(attended).reshape(x.shape)

    def construct(self, x: Tensor, memory: tuple[Tensor, Tensor], keep: tuple[Tensor, ...] | None) -> Tensor:
        """What follows `after_self`: cross-attention and feed-forward, with residual sums. Returns [M, L, D].

        keep: dropout factors [M, L, D] of each of the three sub-layers, or None.
        """
        update = self.cross(x, memory)
        x = self.cross_norm(x + (update if keep is None else update * keep[1]))
        update = self.contract(ops.relu(self.expand(x)))
        return self.out_norm(x + (update if keep is None else update * keep[2]))
