"""SmolLM2's folder from the metadata and tensors of a GGUF file, as llama.cpp writes them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import tiny_folder
from tokenizers import Tokenizer

from src.commands import prepare_smollm2
from src.models.vision_language.architecture import language_sizes
from src.runtime.errors import InputError

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def in_pairs(weight, heads):
    """Row 2i+j of a head of llama.cpp is row j*d/2+i of Hugging Face's, for turning neighbours instead of halves."""
    size = len(weight) // heads
    order = [head * size + j * size // 2 + i for head in range(heads) for i in range(size // 2) for j in (0, 1)]
    return weight[order]


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}"


@pytest.fixture
def llama(tmp_path):
    return tiny_folder("llama", tmp_path / "llama")


def gguf_of(folder, **changes):
    """Return what a GGUF reader of this model would hold."""
    config, library = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = []
    for name, weight in load_file(folder / "model.safetensors").items():
        part = name.split(".")[-2]
        data = in_pairs(weight, heads[part]) if part in heads else weight
        tensors.append(SimpleNamespace(name=gguf_name(name), data=data, tensor_type=0))
    special = {token["content"] for token in library["added_tokens"] if token["special"]}
    vocab = library["model"]["vocab"] | {token["content"]: token["id"] for token in library["added_tokens"]}
    names = {number: token for token, number in vocab.items()}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(config["vocab_size"])]  # as llama.cpp fills up
    facts = {
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in library["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    } | changes
    fields = {name: SimpleNamespace(contents=lambda value=value: value) for name, value in facts.items()}
    return SimpleNamespace(fields=fields, tensors=tensors)


def test_the_folder_holds_the_same_model(llama, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    prepare_smollm2.write_folder(gguf_of(llama), lambda data, kind: data, output)
    expected, written = load_file(llama / "model.safetensors"), load_file(output / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(written[name], weight, err_msg=name)
    assert language_sizes(output) == language_sizes(llama)
    library = Tokenizer.from_file(str(llama / "tokenizer.json"))
    again = Tokenizer.from_file(str(output / "tokenizer.json"))
    for text in ("Two dogs run.", " a\n\n<|im_end|>b", "été 你好", "it's  raining"):
        ids = again.encode(text).ids
        assert ids == library.encode(text).ids and again.decode(ids) == library.decode(ids)
    assert [len(again.encode(text).ids) for text in ("7", "12", "2026")] == [1, 2, 4]  # digits one by one


def test_a_folder_that_exists_is_kept(llama, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prepare_smollm2", "--output", str(llama)])
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=None))
    with pytest.raises(InputError, match="llama exists; choose another folder, or delete it"):
        prepare_smollm2.main()
    assert (llama / "model.safetensors").exists()


def test_nothing_remains_of_a_download_that_fails(tmp_path, monkeypatch):
    def fail(folder):
        raise InputError("no network")

    monkeypatch.setattr("sys.argv", ["prepare_smollm2", "--output", str(tmp_path / "sub/smollm2")])
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=None))
    monkeypatch.setattr(prepare_smollm2, "_download", fail)
    with pytest.raises(InputError, match="no network"):
        prepare_smollm2.main()
    assert list((tmp_path / "sub").iterdir()) == []
