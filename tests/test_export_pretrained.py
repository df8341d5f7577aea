"""Exported folders of pretrained language models: what they hold, read back by this project's own loaders."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file
from test_language_policy import build, configured, features_of
from tiny import WORLD
from tiny_models import tiny_folder

from src.config.load import load_config
from src.decoding.distribution import Sampled
from src.export.__main__ import export_pretrained
from src.export.hugging_face import as_bytes, write_adapter, write_model
from src.losses.grpo import LogprobCell
from src.models.hugging_face import PretrainedWeights, write_weights
from src.runtime.errors import InputError

ADAPTERS = ("lora.rank=4", "lora.targets=q_proj,k_proj,o_proj,up_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_folder(kind, root / kind) for kind in ("llama", "qwen2", "qwen2_5_vl")}


def changed(policy, seed=0):
    """The policy with other values of what is trained."""
    rng = np.random.default_rng(seed)
    for parameter in policy.trained_parameters():
        noise = rng.normal(0, 0.05, parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(parameter.asnumpy() + noise))
    return policy


def logprobs(policy):
    ids = np.random.default_rng(1).choice(np.flatnonzero(policy.token_ids.allowed), (2, 5)).astype(np.int32)
    return LogprobCell(policy, Sampled())(features_of(policy), Tensor(ids)).asnumpy()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", ()),
        ("llama", ADAPTERS),
        ("qwen2", ADAPTERS),
        ("qwen2_5_vl", ("policy.kind=qwen2_5_vl", "data.image_size=112", *ADAPTERS)),
    ],
)
def test_a_merged_model_computes_what_the_policy_does(folders, tmp_path, kind, settings):
    ms.set_context(mode=ms.GRAPH_MODE)
    policy = changed(build(folders[kind], *settings))
    output = tmp_path / "exported"
    output.mkdir()
    write_model(policy, configured(folders[kind], *settings), output)
    names = {file.name for file in folders[kind].iterdir() if file.suffix == ".json"} | {"model.safetensors"}
    assert {file.name for file in output.iterdir()} == names | (
        {"projector.safetensors", "prompt.json"} if policy.projector else set()
    )
    assert set(PretrainedWeights(output).names()) == set(PretrainedWeights(folders[kind]).names())
    again = build(output, *(one for one in settings if not one.startswith("lora")))
    if again.projector is not None:
        projector = load_file(output / "projector.safetensors")
        for name, parameter in again.projector.parameters_and_names():
            parameter.set_data(Tensor(projector[name]))
    np.testing.assert_allclose(logprobs(again), logprobs(policy), atol=1e-4)
    assert np.abs(logprobs(build(folders[kind], *settings)) - logprobs(policy)).max() > 1e-2


def test_a_tied_head_that_the_file_holds_is_written_as_it_was_trained(tmp_path):
    folder = tiny_folder("qwen2", tmp_path / "model")
    arrays = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(arrays | {"lm_head.weight": arrays[name]}, folder / "model.safetensors")
    (tmp_path / "exported").mkdir()
    write_model(changed(build(folder)), configured(folder), tmp_path / "exported")
    written = load_file(tmp_path / "exported/model.safetensors")
    np.testing.assert_array_equal(written["lm_head.weight"], written[name])
    assert np.abs(written[name] - arrays[name]).max() > 0.01


def test_what_has_no_adapter_is_copied_bit_by_bit(folders, tmp_path):
    """The policy holds it in float16."""
    settings = ("precision=float16", "lora.rank=4", "lora.targets=q_proj")
    policy = changed(build(folders["qwen2"], *settings))
    write_model(policy, configured(folders["qwen2"], *settings), tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["qwen2"], tmp_path))
    differing = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert differing == {"model.layers.0.self_attn.q_proj.weight"}


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5_vl"])
def test_an_adapter_in_peft_s_names(folders, tmp_path, kind):
    settings = (*ADAPTERS, *(("policy.kind=qwen2_5_vl", "data.image_size=112") if kind == "qwen2_5_vl" else ()))
    policy = changed(build(folders[kind], *settings))
    write_adapter(policy, configured(folders[kind], *settings), tmp_path)
    given = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (given["peft_type"], given["r"], given["lora_alpha"]) == ("LORA", 4, 32.0)
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.model.language_model" if kind == "qwen2_5_vl" else "base_model.model.model"
    pairs = {name.rsplit(".", 2)[0] for name in arrays}
    wanted = [("self_attn", "q_proj"), ("self_attn", "k_proj"), ("self_attn", "o_proj"), ("mlp", "up_proj")]
    assert pairs == {f"{prefix}.layers.0.{block}.{name}" for block, name in wanted}
    qkv = policy.language.layers[0].qkv
    weight = qkv.weight.asnumpy().T
    effective = weight + (qkv.lora_up.asnumpy() * qkv.blocks.asnumpy()) @ qkv.lora_down.asnumpy()
    rows = {name: place for place, name in qkv.parts()}
    for name in ("q_proj", "k_proj"):
        at = f"{prefix}.layers.0.self_attn.{name}"
        update = 32 / 4 * arrays[f"{at}.lora_B.weight"] @ arrays[f"{at}.lora_A.weight"]
        np.testing.assert_allclose(weight[rows[name]] + update, effective[rows[name]], atol=1e-6)
    np.testing.assert_array_equal(weight[rows["v_proj"]], effective[rows["v_proj"]])


def test_bfloat16_is_rounded_to_the_nearest(tmp_path):
    """1 + 2^-8 lies between 1 and 1 + 2^-7: to even, 1; a little more: up."""
    values = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-16, -3.140625], np.float32)
    write_weights(tmp_path / "model.safetensors", {"x": ("BF16", (4,))}, lambda name: as_bytes(values, "BF16"))
    expected = [1.0, 1.0, 1 + 2**-7, -3.140625]
    assert PretrainedWeights(tmp_path).get("x", (4,)).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "settings", "form", "message"),
    [
        # PEFT would put the adapters behind the tower that they were not trained with.
        ("qwen2_5_vl", ("encoder.trainable=true", *ADAPTERS), "peft", "the vision tower was trained and is no adapter"),
        ("qwen2_5_vl", (), "peft", "lora.rank=0 has no adapters"),
        ("captioner", (), "huggingface", "is for policy.kind prefix_lm or qwen2_5_vl"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_at_once(folders, tmp_path, kind, settings, form, message):
    sees = (f"policy.kind={kind}", "data.image_size=112")
    if kind == "captioner":
        config = load_config(WORLD / "configs/base.yaml", ())
    else:
        config = configured(folders[kind], *sees, *settings)
    with pytest.raises(InputError, match=message):
        export_pretrained(config, tmp_path / "not there", tmp_path, form)
    assert not list(tmp_path.iterdir())
