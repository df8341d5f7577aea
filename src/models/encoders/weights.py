"""Load ResNet-50 weights: the original's MindSpore `.ckpt`, or `.safetensors` with torchvision's names.

The file is not trusted: all its parameters are checked before the first one is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import nn

from src.config.kinds import KINDS, PREPROCESSING
from src.models.encoders.resnet import ResNet50
from src.runtime.errors import InputError

# A part of a MindSpore name -> the same part of torchvision's.
_NORM_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_PIXEL_STD = 58.0  # of photographs, 0 to 255 (ImageNet)
_BODY = ("conv", "bn", "norm", "layer")  # how a name begins that belongs to the encoder; others are a classifier's


def load_encoder_weights(encoder: nn.Cell, path: str) -> None:
    """Set every parameter of a ResNet-50 from the file at `path`; the classifier in it is ignored.

    Raises InputError, and leaves the encoder as it was, when the file is missing, of another kind, damaged,
    or not exactly this network: a name that is missing or unknown, another shape, values that are not finite.
    """
    if not isinstance(encoder, ResNet50):
        raise InputError("encoder.checkpoint: only encoder.kind=resnet50 has weights to load; leave it out")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such weights file; check encoder.checkpoint")
    kind = os.path.splitext(path)[1].removeprefix(".")
    if kind not in ("safetensors", "ckpt"):
        raise InputError(
            f"{path}: weights are read from .safetensors (torchvision's names) or MindSpore's .ckpt; "
            "convert the file to .safetensors (.pth and .pt files hold pickles, which can run code)"
        )
    parameters = dict(encoder.parameters_and_names())  # these names do not change when a cell contains the encoder
    names = {name: _torchvision_name(name) if kind == "safetensors" else name for name in parameters}
    arrays = _load(path, kind)
    _check_names(path, arrays, names)
    values = {name: _checked(path, names[name], arrays[names[name]], parameters[name].shape) for name in parameters}
    for name, value in values.items():
        parameters[name].set_data(ms.Tensor(value))


def other_pixels(encoder: ResNet50, variant: str) -> str | None:
    """Return a warning if the weights expect a different pixel scale than `variant` provides, else None.

    The first batch norm has seen variances of about var(pixels) * sum(weight^2), which differ by 3,600 between
    PREPROCESSING's two scales, and by 20 between its channels.
    """
    weight = encoder.conv1.weight.asnumpy()
    seen = float(np.sqrt(np.median(encoder.norm.moving_variance.asnumpy() / (weight**2).sum((1, 2, 3)))))
    given = {name: _PIXEL_STD * PREPROCESSING[name].scale / PREPROCESSING[name].std[0] for name in KINDS["resnet50"]}
    near = [name for name, std in given.items() if 1 / 8 < seen / std < 8]
    if variant in near or not near:
        return None
    return (
        f"these weights expect pixels with a standard deviation of about {seen:.2g}, but encoder.variant={variant} "
        f"provides {given[variant]:.2g}; use encoder.variant={' or '.join(near)} if they were trained that way"
    )


def _torchvision_name(name: str) -> str:
    """`layer1.0.down_sample.1.gamma` -> `layer1.0.downsample.1.weight`, and so on."""
    cell, part = name.replace("down_sample", "downsample").rsplit(".", 1)
    if part in _NORM_PARTS:
        cell = "bn1" if cell == "norm" else cell.replace(".norm", ".bn")
    return f"{cell}.{_NORM_PARTS.get(part, part)}"


def _load(path: str, kind: str) -> dict[str, np.ndarray]:
    logger = ms.log._get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # MindSpore logs what it raises
    try:
        tensors = dict(ms.load_checkpoint(path, format=kind))
        arrays = {name: _without_bfloat16(value).asnumpy() for name, value in tensors.items()}
    except Exception as error:  # MindSpore raises many types for a damaged file
        raise InputError(
            f"{path}: not a readable {kind} file of unquantised weights; copy it again, or use another"
        ) from error
    finally:
        logger.setLevel(level)
    # MindSpore accepts a tensor with fewer bytes than its shape needs.
    if sum(value.nbytes for value in tensors.values()) > os.path.getsize(path):
        raise InputError(f"{path}: not a readable {kind} file (tensors are cut short); copy it again")
    return arrays


def _without_bfloat16(value: ms.Tensor) -> ms.Tensor:
    return value.astype(ms.float32) if value.dtype == ms.bfloat16 else value


def _check_names(path: str, found: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """All of `names`' values are in the file, and nothing else that could belong to the encoder."""
    wanted = set(names.values())
    for name in names.values():
        if name in found:
            continue
        prefixed = next((other for other in found if other.endswith("." + name)), None)
        if prefixed:
            fix = f"it has {prefixed}: save the encoder alone, without the prefix {prefixed[: -len(name)]}"
        else:
            fix = "use ResNet-50 weights with torchvision's names (.safetensors) or the original's (.ckpt)"
        raise InputError(f"{path}: {name} is missing; {fix}")
    for name in found:
        if name not in wanted and name.startswith(_BODY) and not name.endswith("num_batches_tracked"):
            raise InputError(f"{path}: {name} is not a parameter of ResNet-50; use ResNet-50 weights")


def _checked(path: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != tuple(shape):
        raise InputError(f"{path}: {name} has shape {array.shape}, not {tuple(shape)}; use ResNet-50 weights")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: {name} has type {array.dtype}, not a float; use unquantised weights")
    array = np.ascontiguousarray(array, np.float32)
    variance = name.endswith(("running_var", "moving_variance"))
    if not np.isfinite(array).all() or (variance and array.min() < 0):
        raise InputError(f"{path}: {name} has values that are not finite or a negative variance; use other weights")
    return array
