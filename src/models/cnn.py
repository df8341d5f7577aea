"""A small CNN for the demo's scenes, trained from scratch with the decoder.

Letters: B images, H image side, S = ceil(H / 16) side of the grid, N = S * S grid cells, C = 192 channels.
"""

from __future__ import annotations

from itertools import pairwise

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, Normal, initializer

_WIDTHS = (16, 64, 128, 192)  # output channels of the stem and of three stages, each of stride 2
_GROUP_CHANNELS = 16


class _GroupNorm(nn.Cell):
    """Group norm [B,C,H,W] -> [B,C,H,W]: per image, so training and evaluation agree."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = Parameter(initializer("ones", (1, channels, 1, 1), ms.float32))
        self.beta = Parameter(initializer("zeros", (1, channels, 1, 1), ms.float32))
        self.groups = channels // _GROUP_CHANNELS

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        shape = x.shape
        x = ops.reshape(x, (shape[0], self.groups, -1))
        x = x - ops.mean(x, -1, True)
        x = x * ops.rsqrt(ops.mean(x * x, -1, True) + 1e-5)
        return ops.reshape(x, shape) * self.gamma + self.beta


def _conv(in_channels: int, out_channels: int, stride: int, has_bias: bool = False) -> nn.Conv2d:
    he = HeNormal(mode="fan_out", nonlinearity="relu")
    options = {"pad_mode": "pad", "padding": 1, "has_bias": has_bias, "weight_init": he, "bias_init": "zeros"}
    return nn.Conv2d(in_channels, out_channels, 3, stride, **options)


class _ConvNormRelu(nn.Cell):
    """3x3 convolution, group norm, ReLU: [B,Ci,H,W] -> [B,Co,H/stride,W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, stride)
        self.norm = _GroupNorm(out_channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.relu(self.norm(self.conv(x)))


class SmallCNN(nn.Cell):
    """images [B,3,H,H] float32, scaled to about -2..2 -> grid features [B,N,C] with learned positions, row by row."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.channels = _WIDTHS[-1]
        self.tokens = (-(-image_size // 16)) ** 2
        # No norm in the stem: at half the image's size it would cost as much as all the others together.
        self.stem = _conv(3, _WIDTHS[0], 2, has_bias=True)
        self.stages = nn.SequentialCell([_ConvNormRelu(i, o, 2) for i, o in pairwise(_WIDTHS)])
        self.mix = _ConvNormRelu(self.channels, self.channels, 1)
        self.positions = Parameter(initializer(Normal(0.02), (1, self.tokens, self.channels), ms.float32))

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        x = self.stages(ops.relu(self.stem(images)))  # [B,C,S,S]
        x = x + self.mix(x)
        x = ops.reshape(x, (x.shape[0], x.shape[1], -1))  # [B,C,N]
        return ops.transpose(x, (0, 2, 1)) + self.positions
