"""Compute the features of a frozen encoder before training and evaluation; a trained encoder reads images."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config.schema import Config
from src.data.dataset import build_image_source, preprocessing, weights_digest
from src.data.feature_cache import FeatureCache
from src.data.feature_source import FeatureSource, check_space, feature_path, load_features
from src.data.image_files import UnchangedImages
from src.data.images import ImageSource
from src.data.locate import find_images
from src.data.model_folder import config_digest
from src.data.photographs import READER
from src.data.record import Record
from src.runtime.environment import convolutions_are_slow
from src.runtime.workers import Workers
from src.training.encode_apart import encode_apart


def build_sources(
    config: Config, records: Mapping[str, Sequence[Record]], splits: Sequence[str], encoder: nn.Cell, workers: Workers
) -> list[ImageSource | FeatureSource]:
    """The inputs of the captioner for each of `splits`: images for a trainable encoder, otherwise cached features.

    records: of every split whose features will be cached eventually. The disk must have room for all of them.
    """
    images = {split: find_images(config, [record.file for record in rows]) for split, rows in records.items()}
    if config.encoder.trainable:
        return [build_image_source(config, images[split]) for split in splits]
    key = {"weights": weights_digest(encoder), "reader": str(READER), "preprocessing": wanted_features(config)}
    caches = {}
    for split, rows in images.items():
        # The first worker computes the digests: other nodes may see changes of a shared folder late.
        own = rows.digests(config.cache_folder) if workers.is_first else np.zeros((len(rows.files), 32), np.uint8)
        digests = workers.sum(own).astype(np.uint8)
        path = feature_path(config.cache_folder, key, digests)
        shape = (len(rows.files), encoder.tokens, encoder.channels)
        caches[split] = FeatureCache(path, tuple(rows.files), digests.tobytes(), shape, config.eval.batch_images)
    if workers.is_first:
        check_space(list(caches.values()))

    def fill(cache: FeatureCache) -> None:
        if config.has_convolutions and convolutions_are_slow() and ms.get_context("device_target") == "CPU":
            weights = {name: value.asnumpy() for name, value in encoder.parameters_and_names()}
            encode_apart(config, cache, weights, workers.rank, workers.size)
        else:
            encode_here(config, cache, encoder, workers.rank, workers.size)

    return [load_features(caches[split], fill, workers) for split in splits]


def wanted_features(config: Config) -> str:
    """Return what features depend on besides the encoder's weights and the images."""
    settings = (config.encoder.kind, config.encoder.variant, config.encoder.scale)
    wanted = repr((*settings, config.data.image_size, config.data.resize_after_normalize))
    if config.data.aspect != "stretch" or not config.has_convolutions:  # else the key is that of older versions
        wanted += repr((config.data.aspect, preprocessing(config), config.encoder.layer))
        wanted += config_digest(config.pixels_folder)
    return wanted


def encode_here(config: Config, cache: FeatureCache, encoder: nn.Cell, rank: int, size: int) -> None:
    """Compute the share of worker `rank` of `size` of a feature cache in this process."""
    digests = np.frombuffer(cache.digests, np.uint8).reshape(-1, 32)
    images = build_image_source(config, UnchangedImages(find_images(config, cache.files), digests))
    cache.fill(images.batches, lambda pixels: encoder(Tensor(pixels)).asnumpy(), rank, size)
