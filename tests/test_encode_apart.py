import numpy as np
from mindspore import Tensor
from tiny import TINY, tiny_data

from src.config_load import load_config
from src.data.dataset import build_image_source, feature_source, load_dataset
from src.data.encode_apart import encode_apart
from src.models.encoder import build_encoder


def test_another_process_fills_the_cache_with_this_encoders_features(tmp_path):
    config = load_config("configs/demo/grpo.yaml", [*TINY, f"output_root={tmp_path}", f"data.root={tiny_data()}"])
    files = [record.file for record in load_dataset(config).records["val"]]
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64).set_train(False)
    weights = {name: value.asnumpy() for name, value in encoder.parameters_and_names()}
    encode_apart(config, files, weights)
    (cached,) = (tmp_path / "cache").glob("features-*.npy")
    written = cached.stat().st_mtime_ns
    features = next(feature_source(config, files, encoder).batches([np.arange(16)]))
    assert cached.stat().st_mtime_ns == written  # found, not computed anew
    pixels = next(build_image_source(config, files).batches([np.arange(16)]))
    np.testing.assert_allclose(features, encoder(Tensor(pixels)).asnumpy(), rtol=1e-3, atol=1e-3)
