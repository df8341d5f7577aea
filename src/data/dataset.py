"""A data set as the stages use it: records, tokenised ground truths, tokenizer and sources of images or features."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import nn

from src.config.kinds import PREPROCESSING, Preprocessing
from src.config.schema import Config
from src.data.image_files import Images
from src.data.images import ImageSource
from src.data.locate import read_records, read_split
from src.data.record import ImageId, Record, Skipped
from src.data.tokenizer import Tokenizer, build_word_tokenizer, build_wordpiece_tokenizer
from src.data.words import Words, choose_words, lost_letters


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
