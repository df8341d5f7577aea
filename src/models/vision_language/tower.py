"""Qwen2.5-VL's vision tower for square images: windows, 2-D rotary positions, merger (arXiv:2502.13923, section 2.1).

Letters: B images, S = image side / patch side, N = S*S patches, W windows of n patches each, D width, H heads, d = D/H,
m = merge side, D' width of the language model. Patches come window by window, within a window merge block by merge
block, as the merger and the windows need them; the output is put back in the order of rows.
"""

from collections.abc import Iterator

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, lazy_inline, nn, ops

from src.models import norms
from src.models.hugging_face import PretrainedWeights
from src.models.kernels import MASKED, attend
from src.models.vision_language.adapters import Projection
from src.models.vision_language.architecture import TowerSizes
from src.models.vision_language.layer import RMSNorm
from src.models.vision_language.weights import Part, load_parts, projection_parts

_EPS = 1e-6  # of its RMS norms


def window_order(side: int, merge: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The patches of a grid of `side` x `side` by window: places int [N] in rows of patches, and their window, int [N].

    window: the side of a window in patches; windows at the right and lower edge may be smaller. Within a window, blocks
    of merge x merge patches follow each other row by row.
    """
    row, column = np.divmod(np.arange(side * side), side)
    windows = -(-side // window)
    number = row // window * windows + column // window
    order = np.lexsort((column % merge, row % merge, column // merge, row // merge, number))
    return order, number[order]


class VisionTower(nn.Cell):
    """Pixels [B, 3, H, H], normalised, -> features [B, tokens, D'], row by row. channels: D'; tokens: N / m^2."""

    def __init__(self, sizes: TowerSizes, image_size: int, dtype: mstype.TensorType) -> None:
        super().__init__()
        side = image_size // sizes.patch
        self.dtype, self.side, self.patch = dtype, side, sizes.patch
        self.channels, self.tokens = sizes.out_width, (side // sizes.merge) ** 2
        order, windows = window_order(side, sizes.merge, sizes.window // sizes.patch)
        self.order = Tensor(order, mstype.int32)
        self.rows = Tensor(np.argsort(order[:: sizes.merge**2]), mstype.int32)  # blocks row by row
        angles = _angles(sizes, *np.divmod(order, side))
        self.cosines, self.sines = Tensor(np.cos(angles), dtype), Tensor(np.sin(angles), dtype)
        self.embedding = Parameter(np.zeros((sizes.width, 3 * sizes.patch**2), np.float32), name="embedding")
        self.blocks = nn.CellList(
            [_Block(sizes, dtype, None if number in sizes.full else windows) for number in range(sizes.layers)]
        )
        self.norm = RMSNorm(sizes.width, _EPS)
        merged = sizes.width * sizes.merge**2
        self.merge = nn.CellList([_projection(merged, (merged,), dtype), _projection(merged, (self.channels,), dtype)])
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, images: Tensor) -> Tensor:
        batch, side, patch = images.shape[0], self.side, self.patch
        grid = images.reshape(batch, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        patches = ops.gather(grid.reshape(batch, side * side, -1), self.order, 1)
        patches = ops.cast(patches.reshape(batch * side * side, -1), self.dtype)
        x = self.matmul(patches, ops.cast(self.embedding, self.dtype))
        for block in self.blocks:
            x = block(x, self.cosines, self.sines)
        merged = ops.gelu(self.merge[0](self.norm(x).reshape(batch * self.tokens, -1)), approximate="none")
        return ops.gather(self.merge[1](merged).reshape(batch, self.tokens, -1), self.rows, 1)


class _Block(nn.Cell):
    """A pre-norm layer; windows: the window of each patch, int [N], or None to attend to all."""

    @lazy_inline(policy="front")
    def __init__(self, sizes: TowerSizes, dtype: mstype.TensorType, windows: np.ndarray | None) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.norm1, self.norm2 = RMSNorm(width, _EPS), RMSNorm(width, _EPS)
        self.qkv, self.out = _projection(width, (3 * width,), dtype), _projection(width, (width,), dtype)
        self.gate_up = _projection(width, (sizes.feed_forward, sizes.feed_forward), dtype)
        self.down = _projection(sizes.feed_forward, (width,), dtype)
        self.swiglu = norms.swiglu()
        self.attend = _attend_to_all if windows is None else _WindowAttention(windows, sizes.heads)

    def construct(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        patches = cosines.shape[0]
        qkv = self.qkv(self.norm1(x), None).reshape(-1, patches, 3, self.heads, cosines.shape[1])
        query, key, value = ops.unbind(qkv.transpose(2, 0, 3, 1, 4), 0)  # [B, H, N, d]
        query, key = query * cosines + _half(query) * sines, key * cosines + _half(key) * sines
        attended = self.attend(query, key, value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + self.out(attended, None)
        return x + self.down(self.swiglu(self.gate_up(self.norm2(x), None)), None)


def _attend_to_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value)


class _WindowAttention(nn.Cell):
    """Attention within windows: query, key and value [B, H, N, d] -> [B, H, N, d].

    windows: the window of each patch, int [N], rising. Smaller windows are filled up with masked patches.
    """

    def __init__(self, windows: np.ndarray, heads: int) -> None:
        super().__init__()
        sizes = np.bincount(windows)
        self.count, self.size = len(sizes), int(sizes.max())
        self.padded = bool((sizes != self.size).any())
        if self.padded:
            first = np.cumsum(sizes) - sizes
            within = np.arange(len(windows)) - first[windows]
            places = np.zeros((self.count, self.size), np.int32)
            places[windows, within] = np.arange(len(windows))
            bias = np.full(places.shape, MASKED, np.float32)
            bias[windows, within] = 0.0
            self.places = Tensor(places.reshape(-1))
            self.back = Tensor(windows * self.size + within, mstype.int32)
            self.bias = Tensor(np.tile(bias, (heads, 1))[None, :, None])  # [1, H*W, 1, n]

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, patches, size = query.shape
        shape = (batch, heads * self.count, self.size, size)
        if not self.padded:
            attended = attend(query.reshape(shape), key.reshape(shape), value.reshape(shape))
            return attended.reshape(batch, heads, patches, size)
        query, key, value = (ops.gather(x, self.places, 2).reshape(shape) for x in (query, key, value))
        attended = attend(query, key, value, self.bias)
        return ops.gather(attended.reshape(batch, heads, -1, size), self.back, 2)


def _projection(channels: int, widths: tuple[int, ...], dtype: mstype.TensorType) -> Projection:
    return Projection(channels, widths, ("",) * len(widths), dtype, has_bias=True, lora=None)


def _half(x: Tensor) -> Tensor:
    """[x1, x2] -> [-x2, x1] along the last axis."""
    first, second = ops.chunk(x, 2, -1)
    return ops.concat((-second, first), -1)


def _angles(sizes: TowerSizes, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """float64 [N, d]: a quarter of the frequencies turns with the row, one with the column, and both once more."""
    quarter = sizes.width // sizes.heads // 4
    inverse = sizes.theta ** -(np.arange(quarter) / quarter)
    angles = np.concatenate((np.outer(row, inverse), np.outer(column, inverse)), 1)
    return np.concatenate((angles, angles), 1)


def tower_parts(tower: VisionTower, prefix: str) -> Iterator[Part]:
    """Yield the tensors of the tower by their names, which begin with `prefix`, but the embedding of patches."""
    for number, block in enumerate(tower.blocks):
        at = f"{prefix}blocks.{number}"
        yield Part(f"{at}.norm1.weight", block.norm1.weight)
        yield Part(f"{at}.norm2.weight", block.norm2.weight)
        gate, up = (rows for rows, _ in block.gate_up.parts())
        yield from projection_parts(f"{at}.attn.qkv", block.qkv)
        yield from projection_parts(f"{at}.attn.proj", block.out)
        yield from projection_parts(f"{at}.mlp.gate_proj", block.gate_up, gate)
        yield from projection_parts(f"{at}.mlp.up_proj", block.gate_up, up)
        yield from projection_parts(f"{at}.mlp.down_proj", block.down)
    yield Part(f"{prefix}merger.ln_q.weight", tower.norm.weight)
    for number, projection in zip((0, 2), tower.merge):
        yield from projection_parts(f"{prefix}merger.mlp.{number}", projection)


def load_tower(tower: VisionTower, weights: PretrainedWeights, frames: int) -> None:
    """Set every parameter. Errors: InputError naming the tensor that is missing or misshapen."""
    prefix = next((p for p in ("visual.", "model.visual.") if f"{p}patch_embed.proj.weight" in weights), "visual.")
    load_parts(tower_parts(tower, prefix), weights)
    shape = (tower.embedding.shape[0], 3, frames, tower.patch, tower.patch)
    # The frames of a still image are equal, so that a convolution over them is a product with their sum.
    kernel = weights.get(f"{prefix}patch_embed.proj.weight", shape).sum(2)
    tower.embedding.set_data(Tensor(kernel.reshape(shape[0], -1)))
