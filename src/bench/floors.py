"""The least work of each phase: the operations of its matrix products, and the bytes that must move at least once.

Letters: B images, G group size, K beams, R rows, T tokens, N image tokens, C channels, D width, V vocabulary.
An operation is a multiplication or an addition. Floors exclude what an implementation adds (softmax, sampling, logits
written and read again), so the share of the floor shows what is left to gain.
"""

from unittest.mock import patch

import numpy as np
from mindspore import Tensor, nn, ops

from src.bench.host import CAPTION_WORDS, CAPTIONS_PER_IMAGE, GROUP
from src.bench.sizes import Sizes
from src.bench.timing import Work
from src.config.schema import Config


def floors(config: Config, sizes: Sizes, encoder: nn.Cell) -> dict[str, Work]:
    """The least work of every phase on the device."""
    decoder, rl, evaluation = config.decoder, config.rl, config.eval
    d, n = decoder.width, encoder.tokens
    layer = 6 * d * d + 2 * d * decoder.feed_forward  # weights of one layer that apply to every token
    token_weights = decoder.layers * layer + sizes.vocab * d
    image_weights = encoder.channels * d + decoder.layers * 2 * d * d

    def decoding(images: int, rows: int, tokens: int) -> Work:
        # Of a row: products with weights, with its past, and with its image.
        row = 2 * token_weights * tokens + decoder.layers * (4 * d * tokens * (tokens + 1) / 2 + 4 * d * n * tokens)
        operations = 2 * images * n * image_weights + rows * row
        return Work(operations, 4 * (images * n * encoder.channels + image_weights + tokens * token_weights))

    def update(images: int, rows: int, tokens: int) -> Work:
        # Backward: each product twice more, but for the features, which have no gradient. Bytes: a weight is read
        # forward and backward, its gradient written and read, weight and two moments read and written.
        projection = 2 * images * n * encoder.channels * d
        operations = 3 * (decoding(images, rows, tokens).operations - projection) + 2 * projection
        return Work(operations, 4 * (10 * (token_weights + image_weights) + images * n * encoder.channels))

    images, ce_rows = rl.sample_images, config.ce.batch_images * config.ce.captions_per_image
    conv_operations, conv_weights = convolutions(encoder, config.data.image_size)
    sample = decoding(images, images * rl.group_size, rl.tokens)
    features = update(rl.update_images, rl.update_images * rl.group_size, rl.tokens)
    encode = Work(images * conv_operations, 4 * conv_weights)
    trained = 3 if config.encoder.trainable else 1
    grid = 2 * rl.update_images * n * encoder.channels * d if config.encoder.trainable else 0.0
    encoded, moved = rl.update_images * conv_operations, 4 * conv_weights * (10 if config.encoder.trainable else 1)
    return {
        "encode": encode,
        "sample": sample,
        "rollout": Work(encode.operations + sample.operations, encode.bytes + sample.bytes),
        "reference": Work(sample.operations, 4 * (token_weights + image_weights + images * n * encoder.channels)),
        "update": Work(trained * encoded + features.operations + grid, moved + features.bytes),
        "update_features": features,
        "ce_step": update(config.ce.batch_images, ce_rows, config.ce.tokens),
        "greedy": decoding(evaluation.batch_images, evaluation.batch_images, evaluation.tokens),
        "beam": decoding(evaluation.batch_images, evaluation.batch_images * evaluation.beams, evaluation.tokens),
    }


def reward_floor(sizes: Sizes) -> Work:
    """The least work of the reward: bytes of the words, and of the ground truths' n-grams of n = 1 to 4."""
    words = sizes.rewarded * CAPTION_WORDS
    return Work(0.0, 8 * words + 12 * (sizes.rewarded / GROUP * CAPTIONS_PER_IMAGE * 4 * CAPTION_WORDS))


def convolutions(encoder: nn.Cell, image_size: int) -> tuple[float, int]:
    """Operations of one image's convolutions, counted as they run, and the number of their weights.

    MindSpore must be in PyNative mode.
    """
    counts = []
    function, method = ops.conv2d, nn.Conv2d.construct

    def count(weight: Tensor, out: Tensor) -> Tensor:
        counts.append((2.0 * weight.size * out.shape[2] * out.shape[3], weight.size))
        return out

    with (
        patch.object(ops, "conv2d", lambda x, weight, *rest: count(weight, function(x, weight, *rest))),
        patch.object(nn.Conv2d, "construct", lambda self, x: count(self.weight, method(self, x))),
    ):
        encoder(Tensor(np.zeros((1, 3, image_size, image_size), np.float32)))
    return sum(operations for operations, _ in counts), sum(weights for _, weights in counts)
