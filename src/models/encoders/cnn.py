"""A small CNN for the demo's scenes, trained from scratch with the decoder.

Letters: B images, H image side, S = ceil(H / 16) side of the grid, N = S * S grid cells, C = 128 channels.
"""

from __future__ import annotations

from itertools import pairwise

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, Normal, initializer

from src.models.layers import LayerNorm

_WIDTHS = (16, 48, 96, 128)  # output channels of the four convolutions of stride 2


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.SequentialCell:
    """3x3 convolution and ReLU: [B,Ci,H,W] -> [B,Co,H/stride,W/stride]."""
    he = HeNormal(mode="fan_in", nonlinearity="relu")
    options = {"pad_mode": "pad", "padding": 1, "has_bias": True, "weight_init": he, "bias_init": "zeros"}
    return nn.SequentialCell(nn.Conv2d(in_channels, out_channels, 3, stride, **options), nn.ReLU())


class SmallCNN(nn.Cell):
    """images [B,3,H,H] float32, scaled to about -2..2 -> grid features [B,N,C] with learned positions, row by row.

    The only norm is over the channels of the grid: at larger sizes it would cost more than the convolutions.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.channels = _WIDTHS[-1]
        self.tokens = (-(-image_size // 16)) ** 2
        self.stages = nn.SequentialCell([_conv(i, o, 2) for i, o in pairwise((3, *_WIDTHS))])
        self.mix = _conv(self.channels, self.channels, 1)
        self.norm = LayerNorm(self.channels)
        self.positions = Parameter(initializer(Normal(0.02), (1, self.tokens, self.channels), ms.float32))

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        x = self.stages(images)  # [B,C,S,S]
        x = x + self.mix(x)
        x = ops.reshape(x, (x.shape[0], x.shape[1], -1))  # [B,C,N]
        return self.norm(ops.transpose(x, (0, 2, 1))) + self.positions
