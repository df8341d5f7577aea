"""The encoder-decoder captioner as a policy."""

from copy import deepcopy

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from src.config.schema import Config
from src.data.model_folder import config_digest
from src.data.tokenizer import TokenIds
from src.models.captioner.decoder import Decoder, Memory, shift_right
from src.models.encoders.build import build_encoder, encoder_settings
from src.models.policy import Policy

Caches = tuple[tuple[Tensor, Tensor], ...]  # per layer: keys and values [M, H, t, d] of the tokens so far


class Captioner(Policy):
    """An image encoder and a Transformer decoder. The prefix is the image memory of every decoder layer."""

    def __init__(self, encoder: nn.Cell, decoder: Decoder, token_ids: TokenIds, *, cached: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.token_ids, self.cached = token_ids, cached
        self.bos_id = token_ids.bos
        self.width, self.dropout_sites = decoder.width, decoder.dropout_sites

    def prefix(self, inputs: Tensor) -> Memory:
        """Compute image memory from pixels or cached features."""
        return self.decoder.memory(inputs if self.cached else self.encoder(inputs))

    def hidden(self, prefix: Memory, completion_ids: Tensor, keep: tuple[Tensor, ...] | None = None) -> Tensor:
        """Decode BOS and all tokens but the last."""
        return self.decoder.hidden(shift_right(completion_ids, self.bos_id), prefix, keep)

    def start(self, prefix: Memory, rows: int) -> Caches:
        """Return an empty cache; each step of the unrolled graph appends its keys and values."""
        return ()

    def step(self, token: Tensor, position: int, prefix: Memory, cache: Caches) -> tuple[Tensor, Caches]:
        """See Policy.step; `position` is an int, known when the graph is compiled."""
        return self.decoder.step(token, position, prefix, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] -> [R, V]."""
        return self.decoder.logits(hidden)

    def reorder(self, cache: Caches, parents: Tensor) -> Caches:
        """Select rows of every layer's keys and values."""
        moved: Caches = ()
        for key, value in cache:
            moved += ((ops.gather(key, parents, 0), ops.gather(value, parents, 0)),)
        return moved

    def attention(self, prefix: Memory, completion_ids: Tensor) -> Tensor:
        """Return cross-attention, averaged over heads and layers.

        All layers count, because each contributes to the hidden state that predicts the token; all heads count, because
        the meaning of a single head is unknown. Image tokens are in the order of the encoder's grid, row by row.
        """
        return self.decoder.attention(shift_right(completion_ids, self.bos_id), prefix)

    def reference(self) -> "Captioner":
        """Return a copy."""
        return deepcopy(self)

    def trained_parameters(self) -> list[Parameter]:
        """Return the decoder's parameters, and the encoder's if the inputs are pixels."""
        return self.decoder.trainable_params() + ([] if self.cached else self.encoder.trainable_params())


def build_captioner(config: Config, token_ids: TokenIds, *, cached: bool, load: bool = False) -> Captioner:
    """Build a captioner in evaluation mode with random weights; load: but the encoder's, from `encoder.checkpoint`."""
    dtype = getattr(ms, config.precision)
    encoder_dtype = ms.float32 if cached else dtype  # what is computed once for all runs is computed well
    encoder = build_encoder(**encoder_settings(config), load=load, dtype=encoder_dtype)
    decoder = Decoder(config.decoder, encoder.channels, token_ids.allowed, dtype)
    captioner = Captioner(encoder, decoder, token_ids, cached=cached)
    captioner.base = config_digest(config.pixels_folder) or None
    return captioner.set_train(False)
