"""Beam search against enumeration of every completion, and against beams kept in Python lists."""

import itertools

import numpy as np
import pytest
from conftest import BOS, EOS, PAD
from mindspore import Tensor
from test_decoder import numpy_decoder

from src.decoding.beam import BeamDecoder
from src.decoding.sampler import GreedyDecoder


def completions(allowed, tokens):
    """Every completion of at most `tokens` tokens, ended by EOS or by the limit."""
    words = [token for token in np.flatnonzero(allowed) if token != EOS]
    for length in range(tokens):
        for start in itertools.product(words, repeat=length):
            yield (*start, EOS)
    yield from itertools.product(words, repeat=tokens)


def score(captioner, feature, allowed, rows):
    """Summed float64 log-probs of completions (all of one length) on one image."""
    ids = np.array(rows)
    inputs = np.concatenate([np.full((len(ids), 1), BOS), ids[:, :-1]], 1)
    logits = np.where(allowed, numpy_decoder(captioner, feature[None], inputs), -np.inf)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logprobs, ids[..., None], 2)[..., 0].sum(1)


@pytest.fixture(scope="module")
def ranked(captioner, features, allowed):
    """For each image, every completion of at most 3 tokens with its log-prob."""
    by_length = {}
    for row in completions(allowed, 3):
        by_length.setdefault(len(row), []).append(row)
    return [
        [pair for rows in by_length.values() for pair in zip(rows, score(captioner, feature, allowed, rows))]
        for feature in features.asnumpy()
    ]


def test_wide_beams_find_the_best_completion_of_all(mode, captioner, features, ranked):
    beams = 9 * 9  # as many as there are unfinished completions of two tokens: nothing is ever dropped
    for penalty in (0.0, 1.0):
        ids, mask, scores = (
            out.asnumpy() for out in BeamDecoder(captioner, 3, beams, length_penalty=penalty)(features)
        )
        for image, pairs in enumerate(ranked):
            best, expected = max(pairs, key=lambda pair: pair[1] / len(pair[0]) ** penalty)
            assert tuple(ids[image][mask[image] > 0]) == best
            assert scores[image] == pytest.approx(expected, abs=1e-4)


class PythonBeam:
    """Beam search with lists: a hypothesis is (tokens, log-prob, finished)."""

    def __init__(self, captioner, feature, allowed, block_trigrams=False):
        self.captioner = captioner
        self.feature = feature
        self.allowed = np.flatnonzero(allowed)
        self.block_trigrams = block_trigrams

    def next_logprobs(self, tokens):
        """Float64 log-probs of the allowed next tokens."""
        inputs = np.array([[BOS, *tokens]])
        logits = numpy_decoder(self.captioner, self.feature[None], inputs)[0, -1, self.allowed]
        return logits - np.log(np.exp(logits).sum())

    def repeats(self, tokens):
        trigrams = list(zip(tokens, tokens[1:], tokens[2:]))
        return len(trigrams) > len(set(trigrams))

    def search(self, beams, length, penalty=0.0):
        beam = [((), 0.0, False)]
        for _ in range(length):
            candidates = [hypothesis for hypothesis in beam if hypothesis[2]]
            for tokens, total, finished in beam:
                if not finished:
                    for token, logprob in zip(self.allowed, self.next_logprobs(tokens)):
                        longer = (*tokens, int(token))
                        if not (self.block_trigrams and self.repeats(longer)):
                            candidates.append((longer, total + logprob, token == EOS))
            beam = sorted(candidates, key=lambda c: -c[1] / len(c[0]) ** penalty)[:beams]
        return beam[0]


@pytest.mark.parametrize("penalty, block_trigrams", [(0.0, False), (0.7, False), (0.7, True)])
def test_narrow_beams_equal_beams_in_lists(captioner, features, allowed, penalty, block_trigrams):
    length = 8
    cell = BeamDecoder(captioner, length, 3, penalty, block_trigrams)
    ids, mask, scores = (out.asnumpy() for out in cell(features))
    for image, feature in enumerate(features.asnumpy()):
        tokens, total, _ = PythonBeam(captioner, feature, allowed, block_trigrams).search(3, length, penalty)
        assert tuple(ids[image][mask[image] > 0]) == tokens
        assert scores[image] == pytest.approx(total, abs=1e-4)


@pytest.fixture
def eos_bias(captioner):
    """Sets the bias of the EOS, of a captioner whose tokens weigh four times as much; put back at the end."""
    decoder = captioner.decoder
    before = {
        parameter: parameter.asnumpy() for parameter in (decoder.embedding, decoder.positions, decoder.output.bias)
    }
    for parameter in (decoder.embedding, decoder.positions):
        parameter.set_data(Tensor(4 * before[parameter]))

    def set_bias(value):
        bias = before[decoder.output.bias].copy()
        bias[EOS] = value
        decoder.output.bias.set_data(Tensor(bias))

    yield set_bias
    for parameter, values in before.items():
        parameter.set_data(Tensor(values))


@pytest.mark.parametrize("penalty, bias", [(0.0, 1.5), (1.0, 2.2)])
def test_finished_beams_keep_their_score_and_length(captioner, allowed, eos_bias, penalty, bias):
    eos_bias(bias)
    features = np.random.default_rng(5).normal(size=(12, 4, 6)).astype(np.float16)
    ids, mask, scores = (out.asnumpy() for out in BeamDecoder(captioner, 8, 3, penalty)(Tensor(features)))
    for image, feature in enumerate(features):
        tokens, total, _ = PythonBeam(captioner, feature, allowed).search(3, 8, penalty)
        assert tuple(ids[image][mask[image] > 0]) == tokens
        assert scores[image] == pytest.approx(total, abs=1e-4)
    ended = (ids == EOS).any(1)
    assert 0 < ended.mean() < 1 and (ids[mask == 0] == PAD).all()  # finished beams that won, and that lost


def test_one_beam_is_greedy_decoding(captioner, features):
    ids, mask, scores = (out.asnumpy() for out in BeamDecoder(captioner, 3, 1)(features))
    greedy_ids, greedy_mask, logprobs = (out.asnumpy() for out in GreedyDecoder(captioner, 3)(features))
    np.testing.assert_array_equal(ids, greedy_ids)
    np.testing.assert_array_equal(mask, greedy_mask)
    np.testing.assert_allclose(scores, logprobs.sum(1), atol=1e-5)


def test_a_caption_does_not_depend_on_its_neighbours(captioner, features):
    cell = BeamDecoder(captioner, 3, 3)
    both = [out.asnumpy() for out in cell(features)]
    swapped = [out.asnumpy() for out in cell(Tensor(features.asnumpy()[::-1].copy()))]
    for one, other in zip(both[:2], swapped):
        np.testing.assert_array_equal(one, other[::-1])
    np.testing.assert_allclose(both[2], swapped[2][::-1], atol=1e-5)
