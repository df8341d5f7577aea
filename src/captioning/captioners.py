"""Caption the same photographs with several checkpoints of one configuration.

Letters: B images, N image tokens, C channels, G samples, M rows, T tokens. The pixels of a prepared photograph are the
encoder's input, float32 [3, image_size, image_size].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.captioning.captions import Captions, DecodedCaption, Looks
from src.config.schema import Config
from src.data.dataset import build_image_source, weights_digest
from src.data.image_files import ImageFiles
from src.data.photographs import Photograph
from src.data.tokenizer import decode_completions
from src.data.words import ENGLISH, build_chinese
from src.decoding.attention import Attention, attend_words
from src.decoding.generation import Outputs
from src.evaluation.evaluate import build_decoder, build_sampler
from src.evaluation.result_files import decoding_name
from src.models.build import load_policy
from src.runtime.rng import uniforms
from src.runtime.workers import Workers
from src.training.graphs import graph_cache


class Captioners:
    """Checkpoints by name. Equal encoders, such as those of CE and of RL that started from it, run once."""

    def __init__(self, config: Config, checkpoints: Mapping[str, Path], workers: Workers) -> None:
        """Errors: InputError if a checkpoint cannot be read, or belongs to another configuration."""
        self._config = config
        self._preprocess = build_image_source(config, ImageFiles([])).preprocess
        self._encoders: dict[str, Callable[[Tensor], Tensor]] = {}  # by digest of the weights
        self._decoders = {name: _Decoders(config, path, self._encoders, workers) for name, path in checkpoints.items()}

    def prepare(self, photograph: Photograph) -> Photograph:
        """Preprocess a photograph as in training."""
        return photograph._replace(pixels=self._preprocess(photograph.pixels))

    def __call__(self, photographs: Sequence[Photograph]) -> list[Captions]:
        """Caption prepared photographs. Always pass the same number of them: graphs are compiled for it.

        The random numbers of samples depend only on seed and photograph, not on batch or worker.
        """
        features = self._encode(photographs)
        seed, size, tokens = self._config.seed, self._config.eval.samples, self._config.eval.tokens
        draws = Tensor(np.stack([uniforms(seed, one.key, 0, size, tokens) for one in photographs])) if size else None
        rows = {name: decoders(features[decoders.encoder], draws) for name, decoders in self._decoders.items()}
        return [{name: captions[row] for name, captions in rows.items()} for row in range(len(photographs))]

    def attend(self, photograph: Photograph, captions: Captions) -> Looks:
        """Compute the attention of each word of these captions of one prepared photograph.

        Errors: InputError if jieba is needed to split captions into words and is not installed.
        """
        features = self._encode([photograph])
        return {
            name: decoders.attend(features[decoders.encoder], captions[name])
            for name, decoders in self._decoders.items()
        }

    def _encode(self, photographs: Sequence[Photograph]) -> dict[str, Tensor]:
        """Compute features [B, N, C] by encoder."""
        pixels = Tensor(np.stack([photograph.pixels for photograph in photographs]))
        features = {digest: encode(pixels) for digest, encode in self._encoders.items()}
        if self._config.encoder.trainable:
            return features
        return {digest: value.astype(ms.float16) for digest, value in features.items()}  # as in the feature cache


class _Decoders:
    """The decoders of one checkpoint. encoder: the digest of its encoder, the key in `encoders`."""

    def __init__(self, config: Config, checkpoint: Path, encoders: dict, workers: Workers) -> None:
        policy, self._tokenizer = load_policy(config, checkpoint, cached=True)
        graphs = graph_cache(config, self._tokenizer, workers)
        self.encoder = weights_digest(policy.encoder)
        if self.encoder not in encoders:
            encoders[self.encoder] = graphs.compile("encoder", policy.encoder)
        single = {decoding_name(one): one for one in (replace(config.eval, beams=1), config.eval)}
        self._single = {name: build_decoder(one, policy, graphs) for name, one in single.items()}
        self._sampler = build_sampler(config.eval, policy, graphs) if config.eval.samples else None
        self._attention = graphs.compile("attention", Attention(policy))
        self._eos = policy.token_ids.eos
        self._tokens, self._segmentation = config.eval.tokens, config.data.segmentation

    def __call__(self, features: Tensor, draws: Tensor | None) -> list[list[DecodedCaption]]:
        """Decode the captions of B images from features [B, N, C] and uniforms [B, G, T]."""
        images = features.shape[0]
        columns = [self._captions(name, decoder(features), images) for name, decoder in self._single.items()]
        if self._sampler is not None:
            columns.append(self._captions("sample", self._sampler(features, draws), images))
        return [list(chain(*parts)) for parts in zip(*columns)]

    def attend(self, features: Tensor, captions: Sequence[DecodedCaption]) -> list[tuple[list[str], np.ndarray]]:
        """Compute the attention of each word of each caption, from features [1, N, C]."""
        cut = build_chinese(self._segmentation) if self._tokenizer.chinese else ENGLISH
        texts = [cut.spaced(row.caption) for row in captions]
        weights = attend_words(self._attention, self._tokenizer, features, texts, self._tokens)
        return [(text.split(), rows) for text, rows in zip(texts, weights)]

    def _captions(self, decoding: str, outputs: Outputs, images: int) -> list[list[DecodedCaption]]:
        """Group the captions by image, from ids and mask [M, T] and logprobs [M, T] (of beams [M])."""
        ids, mask, logprobs = (output.asnumpy() for output in outputs)
        sums = logprobs.reshape(len(ids), -1).astype(np.float64).sum(1)
        texts, _ = decode_completions(self._tokenizer, self._eos, ids, mask)
        captions = [DecodedCaption(decoding, text, round(float(value), 4)) for text, value in zip(texts, sums)]
        size = len(captions) // images
        return [captions[start : start + size] for start in range(0, len(captions), size)]
