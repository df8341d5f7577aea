"""The encoder: images [B,3,H,H] -> grid features [B,N,C], once per image."""

from __future__ import annotations

import mindspore as ms
import mindspore.common.dtype as mstype

from src.errors import InputError
from src.models.cnn import SmallCNN
from src.models.encoder_weights import load_encoder_weights
from src.models.resnet import ResNet50
from src.models.variants import KINDS, VARIANTS

# Both are cells with `channels` (C) and `tokens` (N).
Encoder = ResNet50 | SmallCNN


def build_encoder(
    kind: str,
    *,
    variant: str,
    checkpoint: str | None,
    image_size: int,
    dtype: mstype.TensorType = ms.float32,
) -> Encoder:
    """Build an encoder for square images of side `image_size`, and load `checkpoint` (ResNet-50) if it is given.

    Without a checkpoint the weights are random, as MindSpore's seed says. Which parameters are trained is for the
    caller to set, on `encoder.trainable_params()`: batch-norm statistics are not among them. dtype: in which ResNet-50
    works; the small CNN's convolutions are too small to gain.
    """
    if kind not in KINDS:
        raise InputError(f"encoder.kind={kind}: choose one of {', '.join(KINDS)}")
    if variant not in KINDS[kind]:
        raise InputError(f"encoder.variant={variant}: with encoder.kind={kind} choose one of {', '.join(KINDS[kind])}")
    encoder = SmallCNN(image_size) if kind == "cnn" else ResNet50(VARIANTS[variant], image_size, dtype)
    if checkpoint is not None:
        load_encoder_weights(encoder, checkpoint)
    return encoder
