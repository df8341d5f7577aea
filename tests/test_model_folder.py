"""What folders of pretrained models say besides their weights, and what is kept under their names."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import WORLD
from tiny_models import TINY, tiny_folder, write_preprocessing

from src.config.load import load_config
from src.data.image_files import ImageFiles
from src.data.images import ImageSource
from src.data.model_folder import read_preprocessing
from src.data.pretrained_tokenizer import load_pretrained_tokenizer
from src.runtime.errors import InputError
from src.runtime.workers import Workers
from src.training.graphs import graph_cache
from src.training.sources import wanted_features


@pytest.fixture
def tower(tmp_path):
    folder = tmp_path / "tower"
    folder.mkdir()
    (folder / "config.json").write_bytes((TINY / "clip_vision/config.json").read_bytes())
    write_preprocessing(folder)
    return folder


def change(folder, name="preprocessor_config.json", **changes):
    tree = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(tree | changes))


def test_the_processor_s_file_of_transformers_5(tower):
    wanted = read_preprocessing(tower)
    assert wanted.resampling == "bicubic, antialiased"
    (tower / "processor_config.json").write_text('{"image_processor": {"resample": 2, "image_mean": [0, 0, 0]}}')
    assert read_preprocessing(tower) == wanted  # the older file first
    (tower / "preprocessor_config.json").unlink()
    newer = read_preprocessing(tower)
    assert (newer.resampling, newer.mean, newer.std) == ("bilinear, antialiased", (0, 0, 0), wanted.std)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, "resample=1 is not supported"),
        ({"resample": [3]}, r"resample=\[3\] is not supported"),
        ({"resample": {}}, "resample={} is not supported"),
        ({"image_std": [0, 1, 1]}, "image_mean, image_std and rescale_factor are not usable"),
        ({"image_mean": ["0", 0, 0]}, "image_mean, image_std and rescale_factor are not usable"),
        ({"rescale_factor": -1}, "image_mean, image_std and rescale_factor are not usable"),
    ],
)
def test_unusable_settings_of_pixels_are_named(tower, changes, message):
    change(tower, **changes)
    with pytest.raises(InputError, match=f"preprocessor_config.json: {message}"):
        read_preprocessing(tower)


@pytest.mark.parametrize(("number", "filter"), [(2, Image.Resampling.BILINEAR), (3, Image.Resampling.BICUBIC)])
def test_pixels_are_resized_as_pillow_does(tower, tmp_path, number, filter):
    change(tower, resample=number, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8))
    noise.save(tmp_path / "noise.png")
    source = ImageSource(ImageFiles([tmp_path / "noise.png"]), 32, read_preprocessing(tower), 1)
    expected = np.asarray(noise.resize((32, 32), filter), np.float32).transpose(2, 0, 1) / 255
    (batch,) = source.batches([np.array([0])])
    np.testing.assert_allclose(batch[0], expected, atol=1.01 / 255)
    np.testing.assert_allclose(source.preprocess(np.asarray(noise)), expected, atol=1.01 / 255)


def configured(*settings):
    return load_config(WORLD / "configs/base.yaml", settings)


def test_features_of_another_tower_size_or_filling_are_others(tower):
    see = ("encoder.kind=vit", f"encoder.checkpoint={tower}")
    pad = ("data.aspect=pad", "encoder.checkpoint=x.safetensors")
    everyone = [
        configured(*see),
        configured(*see, "encoder.layer=-2"),
        configured(*see, "data.aspect=pad"),
        configured(*see, "data.image_size=96"),
        configured(*pad, "encoder.variant=torchvision"),
        configured(*pad, "encoder.variant=mindspore"),
        configured(*pad, "encoder.variant=mindspore", "data.resize_after_normalize=true"),
    ]
    keys = [wanted_features(config) for config in everyone]
    change(tower, "config.json", hidden_act="gelu")  # weights and sizes are the same
    keys.append(wanted_features(everyone[0]))
    change(tower, resample=2)
    keys.append(wanted_features(everyone[0]))
    assert len(set(keys)) == len(keys)


def test_graphs_of_a_folder_that_changed_are_compiled_anew(tower, tmp_path):
    folder = tiny_folder("llama", tmp_path / "llama")
    config = configured(
        "policy.kind=prefix_lm", f"policy.path={folder}", "encoder.kind=vit", f"encoder.checkpoint={tower}"
    )
    tokenizer = load_pretrained_tokenizer(config)

    def key():
        return json.dumps(graph_cache(config, tokenizer, Workers()).made_from)

    keys = [key()]
    for path, changes in ((folder, {"rms_norm_eps": 0.5}), (tower, {"layer_norm_eps": 0.5})):
        change(path, "config.json", **changes)
        keys.append(key())
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("qwen2_5_vl", "llama", "policy.kind=qwen2_5_vl does not fit .*, whose model_type is llama"),
        ("prefix_lm", "qwen2_5_vl", "policy.kind=prefix_lm does not fit .*, whose model_type is qwen2_5_vl"),
    ],
)
def test_a_policy_of_another_kind_is_named(tmp_path, kind, model, message):
    folder = tiny_folder(model, tmp_path / model)
    with pytest.raises(InputError, match=message):
        load_pretrained_tokenizer(configured(f"policy.kind={kind}", f"policy.path={folder}"))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist, or is not a folder"):
        load_pretrained_tokenizer(configured("policy.kind=prefix_lm", f"policy.path={tmp_path}/nowhere"))
