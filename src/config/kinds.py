"""Properties of encoder weights: the place of strides and padding, and the scale of pixels.

Imports nothing heavy, so that the configuration and the data pipeline can read it before MindSpore is imported.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Input resizing and scaling, in RGB order: `(pixel * scale - mean) / std` with pixels from 0 to 255."""

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: str = "bilinear, not antialiased"  # of the resizing before; the antialiased ones are Pillow's


@dataclass(frozen=True)
class ResNetVariant:
    """How one family of ResNet-50 weights was trained.

    stride_on: the convolution with the stride in a stage's first block, "1x1" (the first) or "3x3".
    pool_padding: of the 3x3 stride-2 max-pool, "around" (1 on every side) or "same" (even sizes: right and below).
    """

    stride_on: str
    pool_padding: str


# Zeros around the max-pool ("v1") and minus infinity around it ("torchvision") are the same after a ReLU: "around".
VARIANTS = {
    "torchvision": ResNetVariant(stride_on="3x3", pool_padding="around"),
    "mindspore": ResNetVariant(stride_on="3x3", pool_padding="same"),
    "v1": ResNetVariant(stride_on="1x1", pool_padding="around"),
}

_IMAGENET = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

PREPROCESSING = {
    "torchvision": _IMAGENET,
    "mindspore": _IMAGENET,
    "v1": Preprocessing(scale=1.0, mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0)),
    "cnn": Preprocessing(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
}

# Layers of a pretrained language model that adapters can be added to.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# encoder.kind -> the valid values of encoder.variant.
KINDS = {
    "resnet50": tuple(VARIANTS),
    "cnn": ("cnn",),
    "vit": (),  # its folder says how pixels are scaled
}
