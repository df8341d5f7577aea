"""Names of Hugging Face's tensors, and what the cells hold of them.

A fused weight [C, D] holds the tensors [D', C] of its layers transposed, side by side.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from mindspore import Parameter, Tensor

from src.models.hugging_face import PretrainedWeights
from src.models.vision_language.adapters import Projection
from src.models.vision_language.language_model import LanguageModel
from src.runtime.errors import InputError

HEAD = "lm_head.weight"
# Where the language model's tensors may be in a folder: alone, in transformers 5's Qwen2.5-VL, or without a head.
_PREFIXES = ("model.", "model.language_model.", "")


class Part(NamedTuple):
    """A tensor's name, and the rows of a parameter, or of its transpose, that hold it."""

    name: str
    parameter: Parameter
    rows: slice = slice(None)
    transposed: bool = False

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the part of the parameter's values that is the tensor, as a view."""
        return (values.T if self.transposed else values)[self.rows]


def language_parts(model: LanguageModel, prefix: str = "model.") -> Iterator[Part]:
    """Yield the tensors of a language model by their names, which begin with `prefix` except the output's."""
    yield Part(f"{prefix}embed_tokens.weight", model.embedding)
    for number, layer in enumerate(model.layers):
        at = f"{prefix}layers.{number}"
        yield Part(f"{at}.input_layernorm.weight", layer.attention_norm.weight)
        yield Part(f"{at}.post_attention_layernorm.weight", layer.feed_forward_norm.weight)
        for block, projection in projections(layer):
            for rows, name in projection.parts():
                yield from projection_parts(f"{at}.{block}.{name}", projection, rows)
    yield Part(f"{prefix}norm.weight", model.norm.weight)
    if not model.sizes.tied:
        yield Part(HEAD, model.output)


def projection_parts(name: str, projection: Projection, outputs: slice = slice(None)) -> Iterator[Part]:
    """Yield weight and bias of a layer within a fused projection."""
    yield Part(f"{name}.weight", projection.weight, outputs, transposed=True)
    if projection.bias is not None:
        yield Part(f"{name}.bias", projection.bias, outputs)


def projections(layer) -> tuple[tuple[str, Projection], ...]:  # type: ignore[no-untyped-def]
    """The fused projections of a layer, with Hugging Face's name of the block that they are in."""
    return ("self_attn", layer.qkv), ("self_attn", layer.out), ("mlp", layer.gate_up), ("mlp", layer.down)


def load_language_model(model: LanguageModel, weights: PretrainedWeights) -> None:
    """Set every parameter but the adapters'. Errors: InputError naming the tensor that is missing or misshapen."""
    prefix = prefix_of(weights)
    if model.sizes.tied and HEAD in weights:
        table = weights.get(f"{prefix}embed_tokens.weight", tuple(model.embedding.shape))
        if not np.array_equal(weights.get(HEAD, table.shape), table):
            raise InputError(
                f"{weights.folder}: {HEAD} differs from the embedding though config.json has tie_word_embeddings=true; "
                "set it to false, or remove the tensor"
            )
    load_parts(language_parts(model, prefix), weights)


def prefix_of(weights: PretrainedWeights) -> str:
    """What precedes the names of a folder's language model."""
    return next((prefix for prefix in _PREFIXES if f"{prefix}embed_tokens.weight" in weights), _PREFIXES[0])


def load_parts(parts: Iterator[Part], weights: PretrainedWeights) -> None:
    """Set parameters from the tensors that they hold."""
    waiting: dict[int, np.ndarray] = {}
    for part in parts:
        values = waiting.setdefault(id(part.parameter), np.empty(part.parameter.shape, np.float32))
        held = part.of(values)
        held[...] = weights.get(part.name, held.shape)
        if part.rows.stop in (None, len(values.T if part.transposed else values)):  # the last one
            part.parameter.set_data(Tensor(waiting.pop(id(part.parameter)), part.parameter.dtype))
