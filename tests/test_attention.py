"""The attention of given captions against an independent float64 implementation."""

import numpy as np
import pytest
from conftest import BOS, VOCAB
from mindspore import Tensor
from test_decoder import numpy_decoder

from src.decoding.attention import Attention, mean_by_word

ROWS, TOKENS, LAYERS, HEADS = 6, 5, 2, 2


@pytest.fixture
def completions():
    return np.random.default_rng(3).integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)  # 2 images x 3 rows


def test_equals_float64_reference(mode, captioner, features, completions):
    weights = Attention(captioner)(features, Tensor(completions)).asnumpy()
    looks = []
    inputs = np.concatenate((np.full((ROWS, 1), BOS), completions[:, :-1]), 1)
    numpy_decoder(captioner, features.asnumpy(), inputs, HEADS, looks=looks)
    expected = np.reshape(looks, (ROWS, LAYERS * HEADS, TOKENS, features.shape[1])).mean(1)
    assert weights.dtype == np.float32 and weights.std() > 0.05  # not even
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_a_token_is_looked_for_before_it_is_known(captioner, features, completions):
    cell = Attention(captioner)
    before = cell(features, Tensor(completions)).asnumpy()
    completions[:, 2] = (completions[:, 2] + 1) % VOCAB
    after = cell(features, Tensor(completions)).asnumpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).all(-1).any()


def test_attention_of_a_word_is_the_mean_of_its_tokens():
    weights = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75]], np.float32)
    assert mean_by_word(weights, [0, 1, 1], 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]  # the last row is the EOS
    assert mean_by_word(weights[:2], [0, 1, 2], 3).tolist() == [[0.5, 0.5], [1, 0], [0, 0]]  # cut by the limit
    assert mean_by_word(weights, [], 0).shape == (0, 2) and mean_by_word(weights, [0], 1).dtype == np.float32
