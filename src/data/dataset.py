"""A data set as the stages use it: records, tokenised ground truths, tokenizer and sources of images or features."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config.kinds import PREPROCESSING, Preprocessing
from src.config.schema import Config
from src.data.feature_cache import FeatureCache
from src.data.features import FeatureSource, check_space, load_features, plan_features
from src.data.image_files import ImageFiles, Images, UnchangedImages
from src.data.images import ImageSource
from src.data.locate import find_images, read_records, read_split
from src.data.photographs import READER
from src.data.record import ImageId, Record, Skipped
from src.data.shards import ShardImages
from src.data.tokenizer import Tokenizer, build_word_tokenizer, build_wordpiece_tokenizer
from src.data.words import Words, choose_words, lost_letters
from src.runtime.environment import convolutions_are_slow
from src.runtime.workers import Workers
from src.training.encode_apart import encode_apart


@dataclass(frozen=True)
class Dataset:
    """Records of each split, their tokenised ground truths in the same order, and what made words of them."""

    records: dict[str, list[Record]]
    ground_truths: dict[str, list[list[str]]]
    skipped: list[Skipped]
    words: Words

    def by_image_id(self, split: str) -> dict[ImageId, list[str]]:
        """Tokenised ground truths of a split, looked up by image id."""
        return {record.image_id: truths for record, truths in zip(self.records[split], self.ground_truths[split])}


def load_dataset(config: Config, scored: str | None = None) -> Dataset:
    """Read what `data` names, after generating the demo's scenes if they are not there.

    scored: None, or the only split to read, whose images need not be there: captions will be scored, not made.
    Errors: InputError naming the file or key.
    """
    records, skipped = read_records(config) if scored is None else read_split(config, scored)
    everything = {record.image_id: record.captions for split in records.values() for record in split}
    words = choose_words(config.data, (caption for captions in everything.values() for caption in captions))
    tokenized = words.tokenize_images(everything, config.cache_folder)
    if words.language == "en" and not words.warning:
        flat = [[row for rows in of.values() for row in rows] for of in (everything, tokenized)]
        words = replace(words, warning=lost_letters(*flat))
    ground_truths = {split: [tokenized[record.image_id] for record in rows] for split, rows in records.items()}
    return Dataset(records, ground_truths, skipped, words)


def build_tokenizer(config: Config, dataset: Dataset) -> Tokenizer:
    """Words of the training captions, or BERT's word pieces, as `tokenizer.kind` says."""
    vocab, chinese = config.tokenizer.vocab, dataset.words.language == "zh"
    if config.tokenizer.kind == "wordpiece" and vocab is not None:  # src/config/rules.py refuses it without
        return build_wordpiece_tokenizer(Path(vocab), chinese=chinese)
    captions = (caption for truths in dataset.ground_truths["train"] for caption in truths)
    return build_word_tokenizer(captions, config.tokenizer.min_count, chinese=chinese)


def preprocessing(config: Config) -> Preprocessing:
    """How pixels are scaled: as the encoder's weights want it, with `encoder.scale` where that is given."""
    wanted, scale = PREPROCESSING[config.encoder.variant], config.encoder.scale
    return wanted if scale is None else replace(wanted, scale=scale)


def build_image_source(config: Config, images: Images) -> ImageSource:
    """Images preprocessed as the encoder's weights want them."""
    return ImageSource(
        images,
        image_size=config.data.image_size,
        **asdict(preprocessing(config)),
        workers=config.data.workers,
        resize_after_normalize=config.data.resize_after_normalize,
    )


def build_sources(
    config: Config, records: Mapping[str, Sequence[Record]], splits: Sequence[str], encoder: nn.Cell, workers: Workers
) -> list[ImageSource | FeatureSource]:
    """What the captioner takes as inputs, for each of `splits`: images for a trainable encoder, else cached features.

    records: of every split whose features will be cached sooner or later. The disk must have room for all of them.
    """
    images = {split: find_images(config, [record.file for record in rows]) for split, rows in records.items()}
    if config.encoder.trainable:
        return [build_image_source(config, images[split]) for split in splits]
    key = _cache_key(config, encoder)
    caches = {
        split: plan_features(
            config.cache_folder,
            key=key,
            files=rows.files,
            digests=_digests(rows, config.cache_folder, workers),
            tokens=encoder.tokens,
            channels=encoder.channels,
            batch=config.eval.batch_images,
        )
        for split, rows in images.items()
    }
    if workers.is_first:
        check_space(list(caches.values()))

    def fill(cache: FeatureCache) -> None:
        if convolutions_are_slow() and ms.get_context("device_target") == "CPU":
            weights = {name: value.asnumpy() for name, value in encoder.parameters_and_names()}
            encode_apart(config, cache, weights, workers.rank, workers.size)
        else:
            encode_here(config, cache, encoder, workers.rank, workers.size)

    return [load_features(caches[split], fill, workers) for split in splits]


def encode_here(config: Config, cache: FeatureCache, encoder: nn.Cell, rank: int, size: int) -> None:
    """Compute the share of worker `rank` of `size` of a feature cache in this process."""
    digests = np.frombuffer(cache.digests, np.uint8).reshape(-1, 32)
    images = build_image_source(config, UnchangedImages(find_images(config, cache.files), digests))
    cache.fill(images.batches, lambda pixels: encoder(Tensor(pixels)).asnumpy(), rank, size)


def _digests(images: ImageFiles | ShardImages, memory: Path, workers: Workers) -> np.ndarray:
    """The digests [n, 32] that the first worker finds, on all: other nodes may see a change of a shared folder late."""
    own = images.digests(memory) if workers.is_first else np.zeros((len(images.files), 32), np.uint8)
    return workers.sum(own).astype(np.uint8)


def padded_batches(rows: int, size: int) -> list[np.ndarray]:
    """Indices 0..rows-1 in batches of `size`; the last repeats its final row, so that every shape is static."""
    indices = np.minimum(np.arange(-(-rows // size) * size), rows - 1)
    return list(indices.reshape(-1, size))


def weights_digest(cell: nn.Cell) -> str:
    """SHA-256 of the names and values of a cell's parameters, hexadecimal."""
    weights = hashlib.sha256()
    for name, parameter in sorted(cell.parameters_and_names()):
        weights.update(name.encode())
        weights.update(np.ascontiguousarray(parameter.asnumpy()).tobytes())
    return weights.hexdigest()


def _cache_key(config: Config, encoder: nn.Cell) -> dict[str, str]:
    settings = (config.encoder.kind, config.encoder.variant, config.encoder.scale)
    return {
        "weights": weights_digest(encoder),
        "reader": str(READER),
        "preprocessing": repr((*settings, config.data.image_size, config.data.resize_after_normalize)),
    }
