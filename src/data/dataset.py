"""A data set as the stages use it: records, tokenised ground truths, tokenizer and sources of images or features."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import nn

from src.config.kinds import PREPROCESSING, Preprocessing
from src.config.schema import Config
from src.data.image_files import ImageFiles
from src.data.images import ImageSource
from src.data.locate import read_records
from src.data.model_folder import read_preprocessing
from src.data.pretrained_tokenizer import load_pretrained_tokenizer
from src.data.record import ImageId, Record, Skipped
from src.data.tokenizer import Tokenizer, build_word_tokenizer, build_wordpiece_tokenizer
from src.data.words import Words, choose_words, lost_letters


@dataclass(frozen=True)
class Dataset:
    """Records of each split, their tokenised ground truths in the same order, and the words that these consist of."""

    records: dict[str, list[Record]]
    ground_truths: dict[str, list[list[str]]]
    skipped: list[Skipped]
    words: Words

    def by_image_id(self, split: str) -> dict[ImageId, list[str]]:
        """Return the tokenised ground truths of each image of a split."""
        return {record.image_id: truths for record, truths in zip(self.records[split], self.ground_truths[split])}

    def targets(self, split: str) -> Sequence[Sequence[str]]:
        """Return the captions of each image in the form that CE teaches: as they were written, or tokenised."""
        if self.words.natural:
            return [record.captions for record in self.records[split]]
        return self.ground_truths[split]


def load_dataset(config: Config, scored: str | None = None) -> Dataset:
    """Read what `data` names; scored: read only this split, without its images, for captions that are only scored."""
    records, skipped = read_records(config, scored)
    everything = {record.image_id: record.captions for split in records.values() for record in split}
    words = choose_words(config.data, (caption for captions in everything.values() for caption in captions))
    words = replace(words, natural=config.policy.is_pretrained)
    tokenized = words.tokenize_images(everything, config.cache_folder)
    if words.language == "en" and not words.warning:
        flat = [[row for rows in of.values() for row in rows] for of in (everything, tokenized)]
        words = replace(words, warning=lost_letters(*flat))
    ground_truths = {split: [tokenized[record.image_id] for record in rows] for split, rows in records.items()}
    return Dataset(records, ground_truths, skipped, words)


def build_tokenizer(config: Config, dataset: Dataset) -> Tokenizer:
    """Build a tokenizer of the training captions' words or of BERT's word pieces, as `tokenizer.kind` says.

    A pretrained language model brings its own.
    """
    if config.policy.is_pretrained:
        return load_pretrained_tokenizer(config)
    vocab, chinese = config.tokenizer.vocab, dataset.words.language == "zh"
    if config.tokenizer.kind == "wordpiece" and vocab is not None:  # src/config/rules.py refuses wordpiece without
        return build_wordpiece_tokenizer(Path(vocab), chinese=chinese)
    captions = (caption for truths in dataset.ground_truths["train"] for caption in truths)
    return build_word_tokenizer(captions, config.tokenizer.min_count, chinese=chinese)


def preprocessing(config: Config) -> Preprocessing:
    """Return how the encoder's weights expect pixels to be scaled, with `encoder.scale` if it is set.

    Errors: InputError naming the preprocessor_config.json that is missing or cannot be used.
    """
    folder, scale = config.pixels_folder, config.encoder.scale
    wanted = PREPROCESSING[config.encoder.variant] if folder is None else read_preprocessing(folder)
    return wanted if scale is None else replace(wanted, scale=scale)


def build_image_source(config: Config, images: ImageFiles) -> ImageSource:
    """Preprocess images as the encoder's weights expect."""
    data = config.data
    padded, late = data.aspect == "pad", data.resize_after_normalize
    return ImageSource(images, data.image_size, preprocessing(config), data.workers, late, padded=padded)


def padded_batches(rows: int, size: int) -> list[np.ndarray]:
    """Deal the indices 0..rows-1 in batches of `size`; the last repeats its final row, so that shapes are static."""
    indices = np.minimum(np.arange(-(-rows // size) * size), rows - 1)
    return list(indices.reshape(-1, size))


def weights_digest(cell: nn.Cell) -> str:
    """Return the SHA-256 of the names and values of a cell's parameters, hexadecimal."""
    weights = hashlib.sha256()
    for name, parameter in sorted(cell.parameters_and_names()):
        weights.update(name.encode())
        weights.update(np.ascontiguousarray(parameter.asnumpy()).tobytes())
    return weights.hexdigest()
