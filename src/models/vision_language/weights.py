"""Names of Hugging Face's tensors, and what the cells hold of them.

A fused weight [D, C] holds the tensors of its layers one below the other.
"""

from collections.abc import Iterator

import numpy as np
from mindspore import Parameter, Tensor

from src.models.hugging_face import PretrainedWeights
from src.models.vision_language.adapters import Projection
from src.models.vision_language.language_model import LanguageModel

# Where the language model's tensors may be in a folder: alone, in transformers 5's Qwen2.5-VL, or without a head.
_PREFIXES = ("model.", "model.language_model.", "")
Part = tuple[str, Parameter, slice]  # a tensor's name, and the rows of the parameter that hold it


def language_parts(model: LanguageModel, prefix: str = "model.") -> Iterator[Part]:
    """Yield the tensors of a language model by their names, which begin with `prefix` except the output's."""
    everything = slice(None)
    yield f"{prefix}embed_tokens.weight", model.embedding, everything
    for number, layer in enumerate(model.layers):
        at = f"{prefix}layers.{number}"
        yield f"{at}.input_layernorm.weight", layer.attention_norm.weight, everything
        yield f"{at}.post_attention_layernorm.weight", layer.feed_forward_norm.weight, everything
        for block, projection in projections(layer):
            for rows, name in projection.parts():
                yield f"{at}.{block}.{name}.weight", projection.weight, rows
                if projection.bias is not None:
                    yield f"{at}.{block}.{name}.bias", projection.bias, rows
    yield f"{prefix}norm.weight", model.norm.weight, everything
    if not model.sizes.tied:
        yield "lm_head.weight", model.output, everything


def projections(layer) -> tuple[tuple[str, Projection], ...]:  # type: ignore[no-untyped-def]
    """The fused projections of a layer, with Hugging Face's name of the block that they are in."""
    return ("self_attn", layer.qkv), ("self_attn", layer.out), ("mlp", layer.gate_up), ("mlp", layer.down)


def load_language_model(model: LanguageModel, weights: PretrainedWeights) -> None:
    """Set every parameter but the adapters'. Errors: InputError naming the tensor that is missing or misshapen."""
    load_parts(language_parts(model, prefix_of(weights)), weights)


def prefix_of(weights: PretrainedWeights) -> str:
    """What precedes the names of a folder's language model."""
    return next((prefix for prefix in _PREFIXES if f"{prefix}embed_tokens.weight" in weights), _PREFIXES[0])


def load_parts(parts: Iterator[Part], weights: PretrainedWeights) -> None:
    """Set parameters from the tensors that they hold."""
    waiting: dict[int, tuple[Parameter, np.ndarray]] = {}
    for name, parameter, rows in parts:
        if rows == slice(None):
            _set(parameter, weights.get(name, parameter.shape))
            continue
        _, values = waiting.setdefault(id(parameter), (parameter, np.empty(parameter.shape, np.float32)))
        values[rows] = weights.get(name, values[rows].shape)
        if rows.stop == len(values):
            _set(*waiting.pop(id(parameter)))


def _set(parameter: Parameter, values: np.ndarray) -> None:
    parameter.set_data(Tensor(values, parameter.dtype))
