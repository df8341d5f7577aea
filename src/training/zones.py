"""The device zones of training as cells."""

from mindspore import Tensor, nn


class Encode(nn.Cell):
    """Only the encoder."""

    def __init__(self, encoder: nn.Cell) -> None:
        super().__init__()
        self.encoder = encoder

    def construct(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels)
