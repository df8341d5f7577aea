"""The sizes of a benchmark, and the configuration that they set."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.config.kinds import KINDS
from src.config.load import current_keys, load_config
from src.config.schema import Config
from src.runtime.errors import InputError
from src.runtime.files import ROOT

BASE = ROOT / "configs/coco/grpo.yaml"
_IMAGES = ("rl.rollout_images", "rl.sample_images", "rl.update_images", "ce.batch_images", "eval.batch_images")
# Short names, and the keys of the configuration that they set.
SHORT = {
    "images": _IMAGES,
    "group": ("rl.group_size", "ce.captions_per_image"),
    "length": ("rl.tokens", "ce.tokens", "eval.tokens"),
    "layers": ("decoder.layers",),
    "width": ("decoder.width",),
    "encoder": ("encoder.kind",),
    "trainable": ("encoder.trainable",),
    "beams": ("eval.beams",),
}
# Defaults of short names that differ from the configuration.
DEFAULTS = {"images": "8", "group": "5", "length": "20", "encoder": "resnet50", "trainable": "true", "beams": "3"}


@dataclass(frozen=True)
class Sizes:
    """Sizes outside the configuration. documents: training images of the reward; rewarded: captions per call of it;
    scored: captions of the evaluation metrics; repeats: measurements after the warm-up."""

    vocab: int = 30522
    documents: int = 113287
    rewarded: int = 3200
    scored: int = 1000
    repeats: int = 5


def parse(arguments: Sequence[str]) -> tuple[Config, Sizes]:
    """`key=value` arguments: short names, fields of Sizes, or dotted keys of the configuration.

    Errors: InputError naming the argument.
    """
    given = dict(DEFAULTS)
    for argument in current_keys(arguments):
        key, separator, value = argument.partition("=")
        if not separator:
            raise InputError(f"'{argument}' must have the form key=value")
        given[key] = value
    sizes = {}
    overrides = ["encoder.checkpoint=null"]
    if given["encoder"] in KINDS:
        overrides.append(f"encoder.variant={KINDS[given['encoder']][0]}")
    for key, value in given.items():
        if key in Sizes.__dataclass_fields__:
            least = 10 if key == "vocab" else 1
            if not value.isdecimal() or int(value) < least:
                raise InputError(f"{key}={value} must be a whole number of at least {least}")
            sizes[key] = int(value)
        else:
            overrides += [f"{long}={value}" for long in SHORT.get(key, (key,))]
    return load_config(BASE, overrides), Sizes(**sizes)
