"""The captioner: an image encoder before the decoder."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.config.schema import Config
from src.models.captioner.decoder import Decoder, Memory
from src.models.encoders.build import build_encoder


class Captioner(nn.Cell):
    """Encoder and decoder. Its inputs are pixels [B, 3, H, W], or cached features [B, N, C] with `cached=True`."""

    def __init__(self, encoder: nn.Cell, decoder: Decoder, *, cached: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.cached = cached

    def memory(self, inputs: Tensor) -> Memory:
        """Image memory for the decoder from pixels or cached features."""
        return self.decoder.memory(inputs if self.cached else self.encoder(inputs))

    def hidden(self, inputs: Tensor, tokens: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Teacher-forced hidden states [M, L, D] of tokens int32 [M, L] (BOS first) on images given as `inputs`."""
        return self.decoder.hidden(tokens, self.memory(inputs), keep)

    def trained_parameters(self) -> list[Parameter]:
        """The parameters that an update changes: the decoder's, and the encoder's where its inputs are pixels."""
        return self.decoder.trainable_params() + ([] if self.cached else self.encoder.trainable_params())


def build_captioner(config: Config, allowed: np.ndarray, *, cached: bool, checkpoint: str | None = None) -> Captioner:
    """A captioner in evaluation mode. `allowed`: bool [V], from the tokenizer; `checkpoint`: weights of the encoder."""
    dtype = getattr(ms, config.precision)
    encoder = build_encoder(
        config.encoder.kind,
        variant=config.encoder.variant,
        checkpoint=checkpoint,
        image_size=config.data.image_size,
        dtype=ms.float32 if cached else dtype,  # what is computed once for all runs is computed well
    )
    decoder = Decoder(config.decoder, encoder.channels, allowed, dtype)
    return Captioner(encoder, decoder, cached=cached).set_train(False)
