"""Several checkpoints of one configuration, which caption the same photographs.

Letters: B images, N image tokens, C channels, G samples, T tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.config import Config
from src.data.dataset import build_image_source, weights_digest
from src.data.image_files import ImageFiles
from src.data.photographs import Photograph
from src.decoding.sampler import GreedyDecoder
from src.evaluation.evaluate import build_decoder, build_sampler, load_captioner
from src.evaluation.files import decoding_name
from src.rng import uniforms
from src.training.run import graph_cache
from src.workers import Workers


class Caption(NamedTuple):
    """decoding: greedy, the name of a beam search, or sample. logprob: of all its tokens, the EOS too, in nats."""

    decoding: str
    caption: str
    logprob: float


Captions = dict[str, list[Caption]]  # by checkpoint: the greedy one, the best beam, the samples


class Inputs(NamedTuple):
    """A photograph as the encoder takes it, float32 [3, image_size, image_size], and the key of its samples."""

    pixels: np.ndarray
    key: int


class Captioners:
    """Checkpoints by name. Those with equal encoders, such as a CE's and what RL made of it, share its work."""

    def __init__(self, config: Config, checkpoints: Mapping[str, Path], workers: Workers) -> None:
        """Errors: InputError where a checkpoint cannot be read, or is of another configuration."""
        self._config = config
        self._preprocess = build_image_source(config, ImageFiles([])).preprocess
        self._encoders = {}  # by digest of the weights
        self._decoders = {name: _Decoders(config, path, self._encoders, workers) for name, path in checkpoints.items()}

    def prepare(self, photograph: Photograph) -> Inputs:
        """The same preprocessing as in training."""
        return Inputs(self._preprocess(photograph.pixels), photograph.key)

    def __call__(self, photographs: Sequence[Inputs]) -> list[Captions]:
        """Captions of each photograph. Graphs are compiled for their number: always give the same.

        Samples are drawn from random numbers of (seed, photograph): the same ones in any batch, on any worker.
        """
        pixels = Tensor(np.stack([photograph.pixels for photograph in photographs]))
        features = {digest: encode(pixels) for digest, encode in self._encoders.items()}  # [B, N, C] each
        if not self._config.encoder.trainable:  # a frozen encoder's are kept, and trained on, as float16
            features = {digest: value.astype(ms.float16) for digest, value in features.items()}
        draws = self._draws([photograph.key for photograph in photographs])
        rows = {name: decoders(features[decoders.encoder], draws) for name, decoders in self._decoders.items()}
        return [{name: captions[row] for name, captions in rows.items()} for row in range(len(photographs))]

    def _draws(self, keys: Sequence[int]) -> Tensor | None:
        """Uniforms [B, G, T] of the samples, or None."""
        size, tokens = self._config.eval.samples, self._config.eval.tokens
        return Tensor(np.stack([uniforms(self._config.seed, key, 0, size, tokens) for key in keys])) if size else None


class _Decoders:
    """What one checkpoint decodes with. `encoder`: the digest of its encoder, which `encoders` holds."""

    def __init__(self, config: Config, checkpoint: Path, encoders: dict, workers: Workers) -> None:
        captioner, self._tokenizer = load_captioner(config, checkpoint, cached=True)
        graphs = graph_cache(config, self._tokenizer, workers)
        self.encoder = weights_digest(captioner.encoder)
        if self.encoder not in encoders:
            encoders[self.encoder] = graphs.keep("encoder", captioner.encoder)
        greedy = GreedyDecoder(captioner, self._tokenizer.specials, config.eval.tokens)
        self._single = {"greedy": graphs.keep("greedy", greedy)}
        if config.eval.beams > 1:
            self._single[decoding_name(config.eval)] = build_decoder(config, captioner, self._tokenizer, workers)
        self._sampler = build_sampler(config, captioner, self._tokenizer, workers) if config.eval.samples else None

    def __call__(self, features: Tensor, draws: Tensor | None) -> list[list[Caption]]:
        """For each of B images its captions, from features [B, N, C] and uniforms [B, G, T]."""
        images = features.shape[0]
        columns = []
        for decoding, decoder in self._single.items():
            ids, _, logprobs = decoder(features)
            columns.append(self._captions(decoding, ids, logprobs, images))
        if self._sampler is not None:
            ids, _, logprobs = self._sampler(features, draws)
            columns.append(self._captions("sample", ids, logprobs, images))
        return [list(chain(*parts)) for parts in zip(*columns)]

    def _captions(self, decoding: str, ids: Tensor, logprobs: Tensor, images: int) -> list[list[Caption]]:
        """The rows of each image, from ids [M, T] and logprobs [M, T] or, of beams, [M]."""
        sums = logprobs.asnumpy().reshape(len(ids), -1).astype(np.float64).sum(1)
        texts = [self._tokenizer.decode(row) for row in ids.asnumpy()]
        captions = [Caption(decoding, text, round(float(value), 4)) for text, value in zip(texts, sums)]
        size = len(captions) // images
        return [captions[start : start + size] for start in range(0, len(captions), size)]
