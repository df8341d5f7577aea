"""The encoder: images [B,3,H,H] -> grid features [B,N,C], once per image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import mindspore.common.dtype as mstype
from mindspore import nn

from src.config.kinds import VARIANTS
from src.config.schema import Config
from src.models.encoders.cnn import SmallCNN
from src.models.encoders.resnet import ResNet50
from src.models.encoders.vit import ViT, load_vit
from src.models.encoders.weights import load_encoder_weights, other_pixels

# encoder.kind -> its cell, with `channels` (C) and `tokens` (N), from variant, image side and type.
BUILDERS: dict[str, Callable[[str, int, mstype.TensorType], nn.Cell]] = {
    "resnet50": lambda variant, image_size, dtype: ResNet50(VARIANTS[variant], image_size, dtype),
    "cnn": lambda variant, image_size, dtype: SmallCNN(image_size),
}


def build_encoder(
    kind: str,
    *,
    variant: str,
    checkpoint: str | None,
    image_size: int,
    dtype: mstype.TensorType = ms.float32,
    layer: int = -1,
    load: bool = True,
) -> nn.Cell:
    """Build an encoder for square images of side `image_size`, and load `checkpoint` if it is given and `load` is set.

    kind and variant: of a configuration, which src/config/rules.py has checked. Without a checkpoint the weights are
    random, as MindSpore's seed says; a vision Transformer has its sizes from there. Which parameters are trained is for
    the caller to set, on `encoder.trainable_params()`: batch-norm statistics are not among them. dtype: of the
    products; the small CNN's convolutions are too small to gain. layer: of a vision Transformer, see `encoder.layer`.
    """
    if kind == "vit":
        vit = ViT(Path(checkpoint or ""), image_size, layer, dtype)
        if load:
            load_vit(vit, Path(checkpoint or ""))
        return vit
    encoder = BUILDERS[kind](variant, image_size, dtype)
    if checkpoint is not None and load:
        load_encoder_weights(encoder, checkpoint)
        odd = other_pixels(encoder, variant)
        if odd is not None:
            print(f"warning: {checkpoint}: {odd}", file=sys.stderr)
    return encoder


def encoder_settings(config: Config) -> dict[str, Any]:
    """Return what a configuration says to `build_encoder`."""
    settings = config.encoder
    given = {"kind": settings.kind, "variant": settings.variant, "layer": settings.layer}
    return given | {"checkpoint": settings.checkpoint, "image_size": config.data.image_size}
