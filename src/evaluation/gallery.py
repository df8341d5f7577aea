"""Build the gallery of a report: some images with every system's captions, their CIDEr, and each word's attention.

A system is CE or one RL method. Letters: n images of a split, G captions of one image (greedy, then the samples),
N image tokens. MindSpore is imported only where models run, so that templates render without it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from src.config.schema import Config
from src.data.image_url import thumbnail_url
from src.data.locate import find_images
from src.data.photographs import UnusableImage
from src.data.records import Record
from src.data.words import Words
from src.evaluation.caption_metrics import load_captions
from src.evaluation.report import System
from src.evaluation.result_files import read_arrays, read_samples
from src.rewards.cider import CiderD
from src.runtime.errors import InputError

_MOST = 60  # images: a page of about 2 MB with two systems
_SIDE = 320  # pixels of an image's longer side


class ScoredCaption(NamedTuple):
    """cider: as in pycocoevalcap; words: as a reader selects them; looks: attention of each, float32 [words, N]."""

    text: str
    cider: float
    words: list[str]
    looks: np.ndarray


class Picture(NamedTuple):
    """url: a data: URL; chosen: highest, lowest or even; captions: by system, greedy, then samples, best first."""

    name: str
    url: str
    ground_truths: tuple[str, ...]
    chosen: str
    captions: dict[str, list[ScoredCaption]]

    def sort_values(self) -> dict[str, float]:
        """Return the values to sort by, of the greedy captions: `gains` by system."""
        return gains({system: rows[0].cider for system, rows in self.captions.items()})


class Gallery(NamedTuple):
    """The chosen images, in dataset order; images: size of the split they come from."""

    pictures: Sequence[Picture]
    images: int


def gains(ciders: Mapping[str, Any]) -> dict[str, Any]:
    """Subtract CE's CIDEr, a number or one per image [n], from every other system's; keep it if there is one system."""
    if len(ciders) == 1:
        return dict(ciders)
    return {system: cider - ciders["ce"] for system, cider in ciders.items() if system != "ce"}


def choose_images(ciders: Mapping[str, np.ndarray], most: int = _MOST) -> dict[int, str]:
    """Choose at most `most` of n images: a third with the highest and a third with the lowest gain (best and worst
    first), the mean over systems; the rest are evenly spaced among the others in dataset order.

    ciders: by system, of the greedy (or beam) captions [n]. Returns the reason for each image.
    """
    gain = np.mean([*gains(ciders).values()], 0)
    images = len(gain)
    most = min(most, images)
    third = most // 3
    order = np.argsort(-gain, kind="stable")
    rest = np.sort(order[third : images - third])
    even = rest[np.arange(most - 2 * third) * len(rest) // max(1, most - 2 * third)]
    groups = {"highest": order[:third], "lowest": order[::-1][:third], "even": even}
    return {int(index): reason for reason, indices in groups.items() for index in indices}


def build_gallery(systems: Mapping[str, System], split: str, name: str) -> Gallery:
    """Build the gallery of a split. name: as in `results_name`.

    Errors: InputError if the results belong to other images than the configuration names now, or an image is broken.
    """
    from src.data.dataset import load_dataset

    config = next(iter(systems.values())).config
    dataset = load_dataset(config)
    records, truths = dataset.records[split], dataset.ground_truths[split]
    segments = {key: read_arrays(system.folder / f"segments_{name}.npz") for key, system in systems.items()}
    ciders = {key: arrays.get("CIDEr", np.zeros(len(records))) for key, arrays in segments.items()}
    reasons = choose_images(ciders)
    chosen = np.array(sorted(reasons))
    scorer = CiderD(truths, eos=False)
    captions = {}
    for key, system in systems.items():
        every = read_groups(system, records, split, name)
        groups = [every[index] for index in chosen]
        looks = look(system, records, split, chosen, groups, dataset.words)
        captions[key] = scored_groups(groups, lambda rows, *rest: scorer(chosen[rows], *rest), looks, dataset.words)
    shown = [records[index] for index in chosen]
    pictures = [
        Picture(record.file.name, url, record.captions, reasons[index], {key: captions[key][place] for key in systems})
        for place, (index, record, url) in enumerate(zip(chosen, shown, thumbnails(config, shown)))
    ]
    return Gallery(pictures, len(records))


def read_groups(system: System, records: Sequence[Record], split: str, name: str) -> list[list[str]]:
    """Read the captions of every image that eval.py wrote for a system, [n][G].

    Errors: InputError if they belong to other images.
    """
    path = system.folder / f"captions_{name}.json"
    captions = load_captions(path)
    if list(captions) != [record.image_id for record in records]:
        raise InputError(f"{path} belongs to other images than {system.config.data.root}; evaluate the run again")
    groups = [[caption] for caption in captions.values()]
    if system.config.eval.samples:
        drawn = read_samples(system.folder, split)
        groups = [group + captions for group, captions in zip(groups, drawn, strict=True)]
    return groups


def scored_groups(
    groups: Sequence[Sequence[str]], score: Callable[..., np.ndarray], looks: Sequence[Sequence], words: Words
) -> list[list[ScoredCaption]]:
    """Score the captions of each image, [images][G], with CIDEr: greedy, then samples, best first. score: as CiderD."""
    flat = [caption for group in groups for caption in group]
    image_rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    tokens = [line.split() for line in words.tokenize(flat)]
    scores = iter(score(image_rows, tokens, np.zeros(len(flat), bool)))
    rows = []
    for group, weights in zip(groups, looks):
        greedy, *samples = (
            ScoredCaption(text, float(next(scores)), words.spaced(text).split(), row)
            for text, row in zip(group, weights)
        )
        rows.append([greedy, *sorted(samples, key=lambda sample: -sample.cider)])
    return rows


def look(
    system: System,
    records: Sequence[Record],
    split: str,
    chosen: np.ndarray,
    groups: Sequence[Sequence[str]],
    words: Words,
) -> list[list[np.ndarray]]:
    """Compute the attention of each word of the captions of the chosen images: float32 [words, N] each, [images][G].

    Captions are tokenized again. A word of several tokens gets their mean, a word beyond eval.tokens zeros.
    """
    from mindspore import Tensor

    from src.data.dataset import padded_batches
    from src.decoding.attention import Attention, attend_words
    from src.models.build import load_policy
    from src.runtime.workers import Workers
    from src.training.graphs import graph_cache
    from src.training.sources import build_sources

    config, alone = system.config, Workers()
    policy, tokenizer = load_policy(config, system.checkpoint, cached=not config.encoder.trainable)
    (source,) = build_sources(config, {split: records}, [split], policy.encoder, alone)
    cell = graph_cache(config, tokenizer, alone).compile("attention", Attention(policy))
    batches = padded_batches(len(groups), min(len(groups), config.eval.batch_images))
    rows: list[np.ndarray] = []  # of all captions, and of those that fill the last batch
    for batch, inputs in zip(batches, source.batches([chosen[batch] for batch in batches])):
        texts = [words.spaced(caption) for index in batch for caption in groups[index]]
        rows += attend_words(cell, tokenizer, Tensor(inputs), texts, config.eval.tokens)
    following = iter(rows)
    return [[next(following) for _ in group] for group in groups]


def thumbnails(config: Config, records: Sequence[Record]) -> list[str]:
    """Encode images as small data: URLs. Errors: InputError naming the file."""
    urls = []
    for file, load in find_images(config, [record.file for record in records]).stream(range(len(records))):
        try:
            urls.append(thumbnail_url(load(), _SIDE))
        except UnusableImage as error:
            raise InputError(f"{file}: {error}; restore the image") from None
    return urls
