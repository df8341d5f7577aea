"""Write a pretrained language model, as training has changed it, in the layout that transformers and PEFT load.

Adapters are merged into the weights, W + alpha / r B A (Hu et al. 2021, section 4.1), or written alone as a PEFT
adapter.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.config.schema import Config
from src.models.hugging_face import INDEX, WEIGHTS, PretrainedWeights, write_arrays, write_weights
from src.models.vision_language.policy import LanguagePolicy
from src.models.vision_language.tower import VisionTower, tower_parts
from src.models.vision_language.weights import HEAD, Part, language_parts, prefix_of, projections

PROJECTOR, PROMPT = "projector.safetensors", "prompt.json"


def write_model(policy: LanguagePolicy, config: Config, folder: Path) -> None:
    """Write the whole folder of the model, with adapters merged, in the types of the pretrained files."""
    source = Path(config.policy.path or "")
    weights = PretrainedWeights(source)
    merged = _merged(policy)
    # What was not trained is copied: the policy may hold it in lower precision.
    trained = {(id(parameter), None) for parameter in policy.trained_parameters()}
    adapted = policy.adapted_projections()
    trained |= {(id(one.weight), rows.start) for one in adapted for rows, _, _ in one.adapted_parts()}
    changed = {
        part.name: part
        for part in _parts(policy, weights)
        if {(id(part.parameter), None), (id(part.parameter), part.rows.start)} & trained
    }

    def data(name: str) -> bytes:
        dtype = weights.dtype(name)
        if name in changed:
            part = changed[name]
            values = merged.get(id(part.parameter))
            return as_bytes(part.of(part.parameter.asnumpy() if values is None else values), dtype)
        if name.endswith("patch_embed.proj.weight") and config.encoder.trainable:
            shape = weights.shape(name)
            kernel = policy.encoder.embedding.asnumpy().reshape(*shape[:2], 1, *shape[3:])
            return as_bytes(np.repeat(kernel / shape[2], shape[2], 2), dtype)  # equal frames, whose sum is ours
        return weights.raw(name)

    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model") and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
    write_weights(
        folder / WEIGHTS, {name: (weights.dtype(name), weights.shape(name)) for name in weights.names()}, data
    )
    _write_projector(policy, folder)


def write_adapter(policy: LanguagePolicy, config: Config, folder: Path) -> None:
    """Write the adapters alone: adapter_config.json and adapter_model.safetensors, as PEFT reads them."""
    prefix = "model.language_model." if config.policy.kind == "qwen2_5_vl" else "model."
    tensors = {}
    for number, layer in enumerate(policy.language.layers):
        for block, projection in projections(layer):
            for rows, columns, name in projection.adapted_parts():
                at = f"base_model.model.{prefix}layers.{number}.{block}.{name}"
                tensors[f"{at}.lora_A.weight"] = projection.lora_down.asnumpy()[columns]
                tensors[f"{at}.lora_B.weight"] = projection.lora_up.asnumpy()[rows, columns]
    names = sorted({name.split(".")[-3] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(config.policy.path),
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        # A vision tower has layers of the same names, which are not adapted.
        "target_modules": rf".*{prefix}layers\.\d+\.(self_attn|mlp)\.({'|'.join(names)})".replace("model.", r"model\."),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_arrays(folder / "adapter_model.safetensors", tensors)
    _write_projector(policy, folder)


def _write_projector(policy: LanguagePolicy, folder: Path) -> None:
    """Write what stands before the language model, if its folder does not hold it: projector and prompt."""
    if policy.projector is not None:
        arrays = {name: value.asnumpy() for name, value in policy.projector.parameters_and_names()}
        write_arrays(folder / PROJECTOR, arrays)
        ids = policy.token_ids
        prompt = {"before": list(ids.before), "after": [*ids.after, ids.bos]}
        (folder / PROMPT).write_text(json.dumps(prompt) + "\n", encoding="utf-8")


def _parts(policy: LanguagePolicy, weights: PretrainedWeights) -> Iterator[Part]:
    """The tensors of the folder that the policy holds."""
    yield from language_parts(policy.language, prefix_of(weights))
    if policy.language.sizes.tied:  # some files hold the table twice
        yield Part(HEAD, policy.language.embedding)
    if isinstance(policy.encoder, VisionTower):
        yield from tower_parts(policy.encoder, "visual." if "visual.merger.ln_q.weight" in weights else "model.visual.")


def _merged(policy: LanguagePolicy) -> dict[int, np.ndarray]:
    """The weights of adapted projections with their adapters, by the id of the parameter."""
    merged = {}
    for one in policy.adapted_projections():
        update = (one.lora_up.asnumpy() * one.blocks.asnumpy()) @ one.lora_down.asnumpy()
        merged[id(one.weight)] = one.weight.asnumpy().astype(np.float32) + update.T
    return merged


def as_bytes(values: np.ndarray, dtype: str) -> bytes:
    """Return float values as the bytes of a safetensors type; bfloat16 is rounded to the nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()
