import shutil
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor
from tiny import TINY, tiny_data

from src.config.load import load_config
from src.data.dataset import build_image_source, load_dataset
from src.data.feature_cache import FeatureCache
from src.data.locate import find_images
from src.models.encoders.build import build_encoder
from src.runtime.errors import InputError
from src.runtime.workers import Workers
from src.training import sources as sources_module
from src.training.encode_apart import encode_apart
from src.training.sources import build_sources


@pytest.mark.parametrize("workers", [1, 2])
def test_other_processes_fill_the_cache_with_this_encoders_features(tmp_path, monkeypatch, workers):
    """As on a CPU with AVX-512; the children of several workers one after the other."""
    config = load_config("configs/demo/grpo.yaml", [*TINY, f"output_root={tmp_path}", f"data.root={tiny_data()}"])
    config = replace(config, eval=replace(config.eval, batch_images=8))
    records = {"val": load_dataset(config).records["val"]}
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64).set_train(False)
    monkeypatch.setattr(sources_module, "convolutions_are_slow", lambda: True)
    shares = []

    def encode_all(config, cache, weights, rank, size):
        for worker in range(workers):
            encode_apart(config, cache, weights, worker, workers)
            shares.append(np.count_nonzero(np.fromfile(cache.done, np.uint8)))

    monkeypatch.setattr(sources_module, "encode_apart", encode_all)
    (source,) = build_sources(config, records, ["val"], encoder, Workers())
    assert shares == {1: [16], 2: [8, 16]}[workers]
    images = find_images(config, [record.file for record in records["val"]])
    pixels = next(build_image_source(config, images).batches([np.arange(16)]))
    features = next(source.batches([np.arange(16)]))
    np.testing.assert_allclose(features, encoder(Tensor(pixels)).asnumpy(), rtol=1e-3, atol=1e-3)


def test_what_the_other_process_refuses_is_raised_here(tmp_path):
    """So that a worker, which is all that other workers and the user hear of, tells it."""
    root = tmp_path / "demo"
    shutil.copytree(tiny_data(), root)
    config = load_config("configs/demo/grpo.yaml", [*TINY, f"output_root={tmp_path}", f"data.root={root}"])
    images = find_images(config, [record.file for record in load_dataset(config).records["val"]])
    image = images.files[9]
    image.write_bytes(image.read_bytes()[:-200] + bytes(200))
    digests = images.digests(tmp_path)
    shape = (len(images.files), 16, 128)
    cache = FeatureCache(tmp_path / "f.npy", tuple(images.files), digests.tobytes(), shape, 8)
    cache.prepare()
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64)
    weights = {name: value.asnumpy() for name, value in encoder.parameters_and_names()}
    with pytest.raises(InputError, match=f"{image}: .*restore the file"):
        encode_apart(config, cache, weights, 0, 1)
    image.write_bytes(bytes(200))
    with pytest.raises(InputError, match=f"{image}: has changed since this run started"):
        encode_apart(config, cache, weights, 0, 1)
    cache.done.unlink()
    with pytest.raises(FileNotFoundError, match="done"):
        encode_apart(config, cache, weights, 0, 1)
