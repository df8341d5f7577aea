"""Sizes of pretrained language models and of Qwen2.5-VL's vision tower, from config.json.

transformers 5 and older versions spell some keys differently; both are read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.model_folder import read_json
from src.runtime.errors import InputError

# What transformers takes where config.json is silent, by family; other sizes must be given.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048, "num_key_value_heads": None},
    "qwen2": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen2_5_vl": {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768, "num_key_value_heads": 8},
}
_TOWER: dict[str, Any] = {"depth": 32, "hidden_size": 3584, "num_heads": 16, "intermediate_size": 3420}
_TOWER |= {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "rope_theta": 1e4}
_TOWER |= {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]}


@dataclass(frozen=True)
class LanguageSizes:
    """A causal language model of the Llama or Qwen2 family.

    heads: of queries; key_heads: of keys and values; head_size: d. inverse_frequencies: float64 [d/2] of the rotary
    positions (Su et al. 2021, arXiv:2104.09864). sections: of d/2, those that turn with an image's time, row and column
    (M-RoPE, arXiv:2409.12191); empty for text alone. biases: whether q/k/v, the output of attention, and the
    feed-forward layers have biases. tied: whether the output shares the embedding's weights.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    feed_forward: int
    eps: float
    inverse_frequencies: tuple[float, ...]
    sections: tuple[int, ...]
    qkv_bias: bool
    out_bias: bool
    feed_forward_bias: bool
    tied: bool
    positions: int


@dataclass(frozen=True)
class TowerSizes:
    """Qwen2.5-VL's vision tower. window: side of a window of attention in pixels; full: blocks without windows."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    out_width: int
    patch: int
    frames: int
    merge: int
    window: int
    full: tuple[int, ...]
    theta: float


def language_sizes(folder: Path) -> LanguageSizes:
    """Read the language model's sizes. Errors: InputError naming config.json and the key."""
    file, config = folder / "config.json", read_json(folder, "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise InputError(f"{file}: model_type={family} is not supported; use a {', '.join(_FAMILIES)} model")
    text = _Keys(file, config | _section(config, "text_config"), _FAMILIES[family])
    width, heads = text.size("hidden_size"), text.size("num_attention_heads")
    head_size, key_heads = text.size("head_dim", width // heads), text.size("num_key_value_heads", heads)
    rope = _rope(text)
    sections: Any = rope.values.get("mrope_section") if family == "qwen2_5_vl" else []
    text.require("hidden_act", text.values.get("hidden_act", "silu") == "silu", "silu")
    text.require("use_sliding_window", not text.flag("use_sliding_window"), "false")
    text.require("num_key_value_heads", heads % key_heads == 0, f"a divisor of num_attention_heads={heads}")
    text.require("head_dim", head_size % 2 == 0, "even")
    if family == "qwen2_5_vl":
        fits = _are_whole(sections) and len(sections) == 3 and 2 * sum(sections) == head_size
        rope.require("mrope_section", fits, f"3 parts of {head_size}/2")
    attention_bias = text.flag("attention_bias")
    tied = config if "tie_word_embeddings" in config else text.values
    return LanguageSizes(
        vocab=text.size("vocab_size"),
        width=width,
        layers=text.size("num_hidden_layers"),
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        feed_forward=text.size("intermediate_size"),
        eps=text.number("rms_norm_eps"),
        inverse_frequencies=_inverse_frequencies(rope, head_size),
        sections=tuple(sections or ()),
        qkv_bias=family != "llama" or attention_bias,
        out_bias=family == "llama" and attention_bias,
        feed_forward_bias=text.flag("mlp_bias"),
        tied=_Keys(file, tied).flag("tie_word_embeddings"),
        positions=text.size("max_position_embeddings"),
    )


def tower_sizes(folder: Path) -> TowerSizes:
    """Read the sizes of Qwen2.5-VL's vision tower. Errors: InputError naming config.json and the key."""
    file, config = folder / "config.json", read_json(folder, "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise InputError(f"{file}: model_type={config.get('model_type')} is not qwen2_5_vl; set policy.kind=prefix_lm")
    vision = _Keys(file, _section(config, "vision_config"), _TOWER)
    width, heads = vision.size("hidden_size"), vision.size("num_heads")
    patch, merge, window = (vision.size(key) for key in ("patch_size", "spatial_merge_size", "window_size"))
    full = vision.values["fullatt_block_indexes"]
    vision.require("hidden_act", vision.values.get("hidden_act", "silu") == "silu", "silu")
    vision.require("num_heads", width % heads == 0 and width // heads % 4 == 0, "a divisor into multiples of 4")
    vision.require("window_size", window % (patch * merge) == 0, f"a multiple of {patch * merge}")
    vision.require("fullatt_block_indexes", _are_whole(full), "a list of whole numbers")
    return TowerSizes(
        width=width,
        layers=vision.size("depth"),
        heads=heads,
        feed_forward=vision.size("intermediate_size"),
        out_width=vision.size("out_hidden_size"),
        patch=patch,
        frames=vision.size("temporal_patch_size"),
        merge=merge,
        window=window,
        full=tuple(full),
        theta=_rope(vision).number("rope_theta"),
    )


class _Keys:
    """The keys of one section of config.json, and their defaults."""

    def __init__(self, file: Path, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.file, self.values = file, {**(defaults or {}), **values}

    def size(self, key: str, if_null: int | None = None) -> int:
        """Return a positive whole number."""
        value = self.values.get(key)
        value = if_null if value is None else value
        if type(value) is not int or value < 1:
            raise InputError(f"{self.file}: {key}={value} must be a whole number above 0; copy the folder again")
        return value

    def number(self, key: str) -> float:
        """Return a positive number."""
        value = self.values.get(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            raise InputError(f"{self.file}: {key}={value} must be a number above 0; copy the folder again")
        return float(value)  # type: ignore[arg-type]

    def flag(self, key: str) -> bool:
        """Return true or false; false if there is no such key."""
        value = self.values.get(key)
        if value not in (True, False, None):
            raise InputError(f"{self.file}: {key}={value} must be true or false; copy the folder again")
        return bool(value)

    def require(self, key: str, holds: bool, wanted: str) -> None:
        """Raise InputError unless the value of `key` is supported."""
        if not holds:
            raise InputError(f"{self.file}: {key}={self.values.get(key)} is not supported: it must be {wanted}")


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _rope(section: _Keys) -> _Keys:
    """Return the settings of rotary positions with the new names: rope_type, rope_theta and those of the type."""
    rope = {"rope_theta": section.values["rope_theta"]}
    rope |= _section(section.values, "rope_scaling") | _section(section.values, "rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    return _Keys(section.file, rope | {"rope_type": "default" if kind == "mrope" else kind})


def _inverse_frequencies(rope: _Keys, head_size: int) -> tuple[float, ...]:
    """Return 1 / theta^(2i/d), rescaled for long contexts as the type says (linear, llama3)."""
    inverse = rope.number("rope_theta") ** -(np.arange(0, head_size, 2) / head_size)
    kind = rope.values["rope_type"]
    rope.require("rope_type", kind in ("default", "linear", "llama3"), "default, linear or llama3")
    if kind == "linear":
        inverse = inverse / rope.number("factor")
    elif kind == "llama3":  # transformers' _compute_llama3_parameters, from Llama 3.1's own code
        factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        rope.require("high_freq_factor", high > low, f"above low_freq_factor={low:g}")
        turns = rope.number("original_max_position_embeddings") * inverse / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        inverse = (1 - smooth) * inverse / factor + smooth * inverse
    return tuple(inverse.tolist())
