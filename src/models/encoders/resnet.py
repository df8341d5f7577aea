"""ResNet-50 as a grid encoder: the last stage keeps the grid of the third, and batch norm is frozen.

Letters: B images, H image side, S = ceil(H / 16) side of the grid, N = S * S grid cells, C = 2048 channels.
Parameters have the names of the original's MindSpore checkpoint, so such a file needs no renaming.
"""

from __future__ import annotations

import mindspore as ms
import mindspore.common.dtype as mstype
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, initializer

from src.config.kinds import ResNetVariant

# blocks, width of the 3x3 convolution, stride; the last stage would have stride 2 in a classifier.
_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 1))
_NORM_EPS = 1e-5  # of all variants
_EXPANSION = 4


class _Conv(nn.Cell):
    """Holds the weight of a convolution; `_conv_norm` applies it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = Parameter(initializer(HeNormal(mode="fan_out", nonlinearity="relu"), shape, ms.float32))
        self.stride = stride
        self.padding = kernel_size // 2


class _FrozenNorm(nn.Cell):
    """Batch norm by stored statistics, in training too: a per-channel scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = Parameter(initializer("ones", (channels,), ms.float32))
        self.beta = Parameter(initializer("zeros", (channels,), ms.float32))
        self.moving_mean = Parameter(initializer("zeros", (channels,), ms.float32), requires_grad=False)
        self.moving_variance = Parameter(initializer("ones", (channels,), ms.float32), requires_grad=False)

    def scale_and_shift(self) -> tuple[ms.Tensor, ms.Tensor]:
        """-> scale [C], shift [C] with norm(x) = x * scale + shift."""
        scale = self.gamma / ops.sqrt(self.moving_variance + _NORM_EPS)
        return scale, self.beta - self.moving_mean * scale


def _conv_norm(x: ms.Tensor, conv: _Conv, norm: _FrozenNorm) -> ms.Tensor:
    """Convolution [B,Ci,H,W] -> [B,Co,H/stride,W/stride], then norm."""
    scale, shift = norm.scale_and_shift()
    # Folded into the weight, the norm costs no pass over the features, forward or backward.
    weight = ops.cast(conv.weight * ops.reshape(scale, (-1, 1, 1, 1)), x.dtype)
    return ops.conv2d(x, weight, ops.cast(shift, x.dtype), conv.stride, "pad", conv.padding)


class _Bottleneck(nn.Cell):
    """1x1, 3x3, 1x1 convolutions and the shortcut; the first of a stage changes channels (and size)."""

    def __init__(self, in_channels: int, width: int, stride: int, first: bool, variant: ResNetVariant) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        on_1x1 = variant.stride_on == "1x1"
        self.conv1 = _Conv(in_channels, width, 1, stride if on_1x1 else 1)
        self.norm1 = _FrozenNorm(width)
        self.conv2 = _Conv(width, width, 3, 1 if on_1x1 else stride)
        self.norm2 = _FrozenNorm(width)
        self.conv3 = _Conv(width, out_channels, 1)
        self.norm3 = _FrozenNorm(out_channels)
        self.first = first
        if first:
            shortcut = _Conv(in_channels, out_channels, 1, stride)
            self.down_sample = nn.CellList([shortcut, _FrozenNorm(out_channels)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = ops.relu(_conv_norm(x, self.conv1, self.norm1))
        y = ops.relu(_conv_norm(y, self.conv2, self.norm2))
        y = _conv_norm(y, self.conv3, self.norm3)
        if self.first:
            x = _conv_norm(x, self.down_sample[0], self.down_sample[1])
        return ops.relu(x + y)


def _stage(number: int, variant: ResNetVariant) -> nn.SequentialCell:
    blocks, width, stride = _STAGES[number - 1]
    in_channels = 64 if number == 1 else width * _EXPANSION // 2
    cells = [_Bottleneck(in_channels, width, stride, True, variant)]
    cells += [_Bottleneck(width * _EXPANSION, width, 1, False, variant) for _ in range(blocks - 1)]
    return nn.SequentialCell(cells)


class ResNet50(nn.Cell):
    """images [B,3,H,H] float32, preprocessed as the variant's weights want -> grid features [B,N,C], row by row.

    Batch-norm statistics never change; gamma, beta and the convolutions are trainable parameters, float32.
    dtype: of convolutions and features.
    """

    def __init__(self, variant: ResNetVariant, image_size: int, dtype: mstype.TensorType = ms.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.channels = 2048
        self.tokens = (-(-image_size // 16)) ** 2
        self.conv1 = _Conv(3, 64, 7, stride=2)
        self.norm = _FrozenNorm(64)
        self.pad_around = variant.pool_padding == "around"
        # Zeros never win after a ReLU. Not ops.pad: its gradient on CPU is wrong from the second call on.
        self.pad = nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.max_pool = nn.MaxPool2d(3, stride=2, pad_mode="valid" if self.pad_around else "same")
        self.layer1 = _stage(1, variant)
        self.layer2 = _stage(2, variant)
        self.layer3 = _stage(3, variant)
        self.layer4 = _stage(4, variant)

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        x = ops.relu(_conv_norm(ops.cast(images, self.dtype), self.conv1, self.norm))
        if self.pad_around:
            x = self.pad(x)
        x = self.max_pool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B,C,S,S]
        x = ops.reshape(x, (x.shape[0], x.shape[1], -1))  # [B,C,N]
        return ops.transpose(x, (0, 2, 1))
