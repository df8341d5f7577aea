"""Language models and vision towers against what transformers computes from the same folders (tests/data/hf_tiny)."""

import contextlib
import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import load_file, save_file
from tiny_models import TINY

from src.models.encoders.vit import ViT, bicubic, load_vit
from src.models.hugging_face import PretrainedWeights
from src.models.vision_language.architecture import language_sizes, tower_sizes
from src.models.vision_language.language_model import LanguageModel, image_positions, rotary_angles
from src.models.vision_language.tower import VisionTower, load_tower, window_order
from src.models.vision_language.weights import load_language_model
from src.runtime.errors import InputError

PROMPT, GROUP = 9, 2  # tokens of the prefix; rows that share it


def reference(kind):
    return np.load(TINY / kind / "reference.npz")


def language_model(folder, positions, prompt):
    model = LanguageModel(language_sizes(folder), positions, prompt, ms.float32)
    load_language_model(model, PretrainedWeights(folder))
    return model.set_train(False)


class Logits(nn.Cell):
    """Teacher-forced logits [M, T, V] behind the prefix of each image's embeddings."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def construct(self, embeddings, inputs):
        hidden = self.model.hidden(self.model.prefix(embeddings), inputs)
        return self.model.logits(hidden.reshape(-1, hidden.shape[-1])).reshape(*inputs.shape, -1)


class Prefix(nn.Cell):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def construct(self, embeddings):
        return self.model.prefix(embeddings)


class Step(nn.Cell):
    """Logits [M, V] of one cached step."""

    def __init__(self, model, rows, tokens):
        super().__init__()
        self.model, self.caches = model, ms.ParameterTuple(model.allocate(rows, tokens))

    def construct(self, token, position, prefix):
        hidden, new = self.model.step(token, position, prefix, self.caches)
        logits = self.model.logits(hidden)
        return ms.ops.depend(logits, self.model.store(self.caches, new, position))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_logits_and_greedy_tokens_are_those_of_transformers(kind):
    ms.set_context(mode=ms.GRAPH_MODE)
    expected = reference(kind)
    ids = expected["ids"].astype(np.int32)
    given, greedy = ids.shape[1] - PROMPT, expected["greedy"].shape[1]
    model = language_model(TINY / kind, np.arange(PROMPT + given + greedy)[None], PROMPT)
    embeddings = model.embed(Tensor(ids[:, :PROMPT]))
    rows = np.repeat(ids[:, PROMPT:], GROUP, 0)
    logits = Logits(model)(embeddings, Tensor(rows)).asnumpy()
    np.testing.assert_allclose(logits, np.repeat(expected["logits"][:, PROMPT:], GROUP, 0), atol=1e-4)

    prefix, step = ms.mutable(Prefix(model)(embeddings)), Step(model, len(rows), given + greedy)
    produced = []
    for position in range(given + greedy - 1):
        token = rows[:, position] if position < given else produced[-1]
        stepped = step(Tensor(token, ms.int32), Tensor(position, ms.int32), prefix).asnumpy()
        if position < given:
            np.testing.assert_allclose(stepped, logits[:, position], atol=1e-4)
        if position >= given - 1:
            produced.append(stepped.argmax(-1))
    np.testing.assert_array_equal(np.stack(produced, 1), np.repeat(expected["greedy"], GROUP, 0))


def test_qwen2_5_vl_sees_as_in_transformers():
    folder, expected = TINY / "qwen2_5_vl", reference("qwen2_5_vl")
    sizes, weights = tower_sizes(folder), PretrainedWeights(folder)
    tower = VisionTower(sizes, 224, ms.float32)
    load_tower(tower, weights, sizes.frames)
    seen = tower(Tensor(expected["images"]))
    np.testing.assert_allclose(seen.asnumpy(), expected["seen"], atol=1e-4)
    ids, before = expected["ids"].astype(np.int32), len(expected["before"])
    following = ids.shape[1] - before - 64
    positions = image_positions(before, 8, following, turned=True)
    np.testing.assert_array_equal(positions, expected["positions"][:, 0])
    prompt = before + 64 + len(expected["after"]) - 1
    model = language_model(folder, positions, prompt)
    embeddings = model.embed(Tensor(ids[:, :prompt])).asnumpy()
    embeddings[:, before : before + 64] = seen.asnumpy()
    logits = Logits(model)(Tensor(embeddings), Tensor(ids[:, prompt:])).asnumpy()
    np.testing.assert_allclose(logits, expected["logits"][:, prompt:], atol=1e-4)


def numpy_window_attention(query, key, value, window):
    """float64 attention of one image, [H, N, d], each patch to those of its own window."""
    same = window[:, None] == window
    scores = np.einsum("hid,hjd->hij", query, key) / query.shape[-1] ** 0.5
    weights = np.where(same, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return np.einsum("hij,hjd->hid", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("side", [8, 10, 16, 18])
def test_windows_of_unequal_size(side):
    from src.models.vision_language.tower import _WindowAttention

    order, windows = window_order(side, 2, 8)
    row, column = np.divmod(order, side)
    assert sorted(order) == list(range(side**2)) and (np.diff(windows) >= 0).all()
    np.testing.assert_array_equal(windows, row // 8 * -(-side // 8) + column // 8)
    blocks = np.stack((row // 2, column // 2), 1).reshape(-1, 4, 2)
    assert (blocks == blocks[:, :1]).all()  # the merger takes four neighbours
    query, key, value = np.random.default_rng(side).normal(size=(3, 2, 3, side**2, 4)).astype(np.float32)
    result = _WindowAttention(windows, 3)(*map(Tensor, (query, key, value))).asnumpy()
    for image in range(2):
        expected = numpy_window_attention(*(x[image].astype(np.float64) for x in (query, key, value)), windows)
        np.testing.assert_allclose(result[image], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "images", "layer", "wanted"),
    [
        ("clip_vision", "images", -1, "last_hidden_state"),
        ("clip_vision", "images", -2, "penultimate"),
        ("siglip_vision", "images", -1, "last_hidden_state"),
        ("siglip_vision", "images", -2, "penultimate"),
        ("siglip_vision", "larger_images", -1, "larger_last_hidden_state"),
        ("dinov2", "images", -1, "last_hidden_state"),
        ("dinov2", "images", -2, "penultimate"),
        ("dinov2", "larger_images", -1, "larger_last_hidden_state"),
    ],
)
def test_features_are_those_of_transformers(kind, images, layer, wanted):
    expected = reference(kind)
    pixels = expected[images]
    vit = ViT(TINY / kind, pixels.shape[-1], layer)
    load_vit(vit, TINY / kind)
    features = vit(Tensor(pixels)).asnumpy()
    assert features.shape == (len(pixels), vit.tokens, vit.channels)
    np.testing.assert_allclose(features, expected[wanted][:, vit.class_rows :], atol=1e-4)


def test_the_vision_tower_of_clip_is_that_of_its_whole_folder(tmp_path):
    """Older folders write `vision_model.` before each name, with or without the text tower."""
    folder = tmp_path / "alone"
    folder.mkdir()
    arrays = load_file(TINY / "clip/model.safetensors")
    save_file({k: v for k, v in arrays.items() if k.startswith("vision_model.")}, folder / "model.safetensors")
    config = json.loads((TINY / "clip/config.json").read_text())["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    pixels, features = Tensor(reference("clip")["images"]), []
    for path in (folder, TINY / "clip"):
        vit = ViT(path, 64, -1)
        load_vit(vit, path)
        features.append(vit(pixels).asnumpy())
    np.testing.assert_array_equal(*features)


def test_bicubic_weights_by_hand():
    """Cubic convolution with a = -0.75 at 1/4 between two points: 0.8789, 0.2617, and -0.1055, -0.0352 outside."""
    matrix = bicubic(8, 16)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(matrix[9, 3:7], [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    np.testing.assert_allclose(bicubic(5, 5), np.eye(5), atol=1e-12)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_files_and_shards(tmp_path, dtype):
    """Weights in two shards with an index, in half precision, are the rounded ones of the whole float32 file."""
    arrays = load_file(TINY / "llama/model.safetensors")
    names = sorted(arrays)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, members in shards.items():
        write_safetensors(tmp_path / file, {name: arrays[name] for name in members}, dtype)
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = PretrainedWeights(tmp_path)
    for name in names:
        if dtype == "F16":
            expected = arrays[name].astype(np.float16).astype(np.float32)
        else:
            expected = (arrays[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
        np.testing.assert_array_equal(weights.get(name, arrays[name].shape), expected)


def write_safetensors(path, arrays, dtype):
    """Write arrays as float16, or as bfloat16 cut short, which NumPy lacks."""
    header, data = {}, b""
    for name, array in arrays.items():
        part = array.astype(np.float16) if dtype == "F16" else (array.view(np.uint32) >> 16).astype(np.uint16)
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + part.nbytes]}
        data += part.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_rotary_frequencies_by_hand(tmp_path):
    """theta 10,000 and d 8: frequencies 1, 0.1, 0.01, 0.001; linear halves them; llama3 by its formula."""
    config = json.loads((TINY / "qwen2/config.json").read_text()) | {"head_dim": 8}

    def frequencies(**rope):
        tree = {key: value for key, value in config.items() if key != "rope_parameters"} | rope
        (tmp_path / "config.json").write_text(json.dumps(tree))
        return language_sizes(tmp_path).inverse_frequencies

    plain = [1, 0.1, 0.01, 0.001]
    assert frequencies(rope_theta=10000) == pytest.approx(plain)
    assert frequencies(rope_parameters={"rope_theta": 10000, "rope_type": "default"}) == pytest.approx(plain)
    linear = {"type": "linear", "factor": 2.0}
    assert frequencies(rope_theta=10000, rope_scaling=linear) == pytest.approx([f / 2 for f in plain])
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 200}
    # Turns in 200 tokens: 31.8 (kept), 3.18 (between), 0.318 and 0.0318 (divided by 8); smooth = (3.183 - 1) / 3.
    smooth = (200 * 0.1 / (2 * np.pi) - 1) / 3
    expected = [1, (1 - smooth) * 0.1 / 8 + smooth * 0.1, 0.01 / 8, 0.001 / 8]
    assert frequencies(rope_theta=10000, rope_scaling=scaled) == pytest.approx(expected)


def test_sections_of_m_rope_by_hand():
    sizes = language_sizes(TINY / "qwen2_5_vl")
    assert sizes.sections == (2, 3, 3)
    angles = rotary_angles(sizes, np.array([[1], [10], [100]]))
    turns = np.array([1, 1, 10, 10, 10, 100, 100, 100]) * np.array(sizes.inverse_frequencies)
    np.testing.assert_allclose(angles, [np.tile(turns, 2)])


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY / "llama", tmp_path / "model")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type=gpt2 is not supported; use a llama, qwen2, qwen2_5_vl model"),
        ({"hidden_size": "48"}, "hidden_size=48 must be a whole number above 0"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 is not supported: it must be a divisor"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported: it must be silu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type=yarn is not supported"),
        ({"vocab_size": None}, "vocab_size=None must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps=small must be a number above 0"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta=0 must be a number above 0"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor=None must be a number above 0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor=None must be a number above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings=false must be true or false"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] is not supported"),
    ],
)
def test_an_unusable_config_is_named(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        language_sizes(folder)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("text_config", {"rope_parameters": {"mrope_section": "abc"}}, "mrope_section=abc is not supported"),
        ("text_config", {"rope_parameters": {"mrope_section": 8}}, "mrope_section=8 is not supported"),
        (
            "vision_config",
            {"fullatt_block_indexes": ["1", "3"]},
            r"fullatt_block_indexes=\['1', '3'\] is not supported",
        ),
        ("vision_config", {"fullatt_block_indexes": None}, "fullatt_block_indexes=None is not supported"),
    ],
)
def test_an_unusable_section_is_named(tmp_path, section, changes, message):
    folder = shutil.copytree(TINY / "qwen2_5_vl", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config[section] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        language_sizes(folder), tower_sizes(folder)


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path):
    """The defaults of transformers 5.24's Qwen2_5_VLTextConfig and Qwen2_5_VLVisionConfig."""
    folder = tmp_path / "model"
    folder.mkdir()
    text = {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 2, "intermediate_size": 64}
    text |= {"vocab_size": 100, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"} | text))
    language, tower = language_sizes(folder), tower_sizes(folder)
    assert (language.eps, language.key_heads, language.positions, language.tied) == (1e-5, 8, 32768, False)
    assert language.inverse_frequencies[1] == pytest.approx(1e6 ** (-2 / 128))
    assert (tower.layers, tower.width, tower.heads, tower.feed_forward, tower.out_width) == (32, 3584, 16, 3420, 3584)
    assert (tower.patch, tower.merge, tower.frames, tower.window) == (14, 2, 2, 112)
    assert (tower.full, tower.theta) == ((7, 15, 23, 31), 1e4)


def test_one_file_comes_before_an_index(folder):
    arrays = load_file(folder / "model.safetensors")
    save_file({name: array + 1 for name, array in arrays.items()}, folder / "shard.safetensors")
    names = dict.fromkeys(arrays, "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for shift in (0, 1):  # as transformers reads a folder that holds both
        np.testing.assert_array_equal(
            PretrainedWeights(folder).get("model.norm.weight", (48,)), arrays["model.norm.weight"] + shift
        )
        (folder / "model.safetensors").unlink(missing_ok=True)


def test_a_tied_model_with_another_head_is_refused(tmp_path):
    folder = shutil.copytree(TINY / "qwen2", tmp_path / "model")
    arrays = load_file(folder / "model.safetensors")
    table = arrays["model.embed_tokens.weight"]
    for head, refused in ((table, False), (table + 1, True)):
        save_file(arrays | {"lm_head.weight": head}, folder / "model.safetensors")
        with pytest.raises(InputError, match="differs from the embedding") if refused else contextlib.nullcontext():
            language_model(folder, np.arange(3)[None], 2)


@pytest.mark.parametrize("kind", ["clip_vision", "siglip_vision", "dinov2"])
def test_a_tower_without_one_of_its_tensors_is_refused(tmp_path, kind):
    folder = shutil.copytree(TINY / kind, tmp_path / kind)
    arrays = load_file(folder / "model.safetensors")
    size = reference(kind)["images"].shape[-1]
    unread = ("mask_token", "head.", "post_layernorm" if kind == "clip_vision" else "mask_token")  # by the features
    for name in arrays:
        save_file({key: array for key, array in arrays.items() if key != name}, folder / "model.safetensors")
        if any(part in name for part in unread):
            load_vit(ViT(folder, size, -1), folder)
            continue
        with pytest.raises(InputError, match=f"the tensor {name} is missing"):
            load_vit(ViT(folder, size, -1), folder)


def test_a_tower_without_biases_of_queries_keys_and_values(tmp_path):
    folder = shutil.copytree(TINY / "dinov2", tmp_path / "dinov2")
    arrays = load_file(folder / "model.safetensors")
    change_config(folder, qkv_bias=False)
    qkv = ("query.bias", "key.bias", "value.bias")
    pixels, features = Tensor(reference("dinov2")["images"]), []
    for zero in (True, False):  # zeros that the file holds are not read, and need not be there
        rest = {name: array for name, array in arrays.items() if not name.endswith(qkv)}
        save_file(arrays if zero else rest, folder / "model.safetensors")
        vit = ViT(folder, pixels.shape[-1], -1)
        load_vit(vit, folder)
        features.append(vit(pixels).asnumpy())
    np.testing.assert_array_equal(*features)


@pytest.mark.parametrize("shape", [(0, 40), (17,), (1, 16, 39)])
def test_a_table_of_positions_of_another_shape_is_named(tmp_path, shape):
    folder = shutil.copytree(TINY / "siglip_vision", tmp_path / "tower")
    arrays = load_file(folder / "model.safetensors")
    (name,) = (name for name in arrays if "position_embedding" in name)
    save_file(arrays | {name: np.zeros(shape, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="which is not a square grid"):
        load_vit(ViT(folder, 64, -1), folder)


def test_unusable_weights_are_named(folder):
    file = folder / "model.safetensors"
    arrays = load_file(file)
    weights = PretrainedWeights(folder)
    with pytest.raises(InputError, match=r"lm_head.weight has shape \(199, 48\), but config.json needs \(200, 48\)"):
        weights.get("lm_head.weight", (200, 48))
    with pytest.raises(InputError, match="the tensor absent is missing"):
        weights.get("absent", (1,))
    save_file(arrays | {"lm_head.weight": arrays["lm_head.weight"].astype(np.int8)}, file)
    with pytest.raises(InputError, match=r"lm_head\.weight has type I8; use unquantised weights"):
        PretrainedWeights(folder).get("lm_head.weight", (199, 48))
    save_file(arrays | {"lm_head.weight": np.full((199, 48), np.nan, np.float32)}, file)
    with pytest.raises(InputError, match=r"lm_head\.weight has values that are not finite"):
        PretrainedWeights(folder).get("lm_head.weight", (199, 48))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or not a safetensors file"):
        PretrainedWeights(folder)
    file.unlink()
    with pytest.raises(InputError, match=r"model.safetensors is missing.*\.bin files hold pickles"):
        PretrainedWeights(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(InputError, match=r"index.json is damaged"):
        PretrainedWeights(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"is not a pretrained model: config\.json is missing"):
        language_sizes(folder)


@pytest.mark.parametrize(
    ("kind", "size", "layer", "message"),
    [
        ("dinov2", 100, -1, "data.image_size=100 must be a multiple of 14"),
        ("dinov2", 112, -4, "encoder.layer=-4 must be from -3 to -1"),
        ("dinov2", 112, 0, "encoder.layer=0 must be from -3 to -1"),
        ("llama", 112, -1, "model_type=llama is not a supported vision tower"),
    ],
)
def test_unusable_vision_towers_are_named(kind, size, layer, message):
    with pytest.raises(InputError, match=message):
        ViT(TINY / kind, size, layer)
