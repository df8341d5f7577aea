"""The group sampler: right frequencies, right masks, one distribution for sampling and scoring."""

import mindspore as ms
import numpy as np
import pytest
from conftest import BOS, EOS, PAD, VOCAB
from mindspore import Tensor, nn, ops
from test_decoder import Forced

from src.decoding.distribution import InverseCDF, Sampled, policy_logits
from src.decoding.sampler import GreedyDecoder, GroupSampler
from src.losses.grpo import LogprobCell
from src.runtime.rng import uniforms

TOKENS = 4


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


SAMPLERS = {}  # by temperature, top_k and tokens: a graph is compiled once for all tests


def sample(captioner, features, allowed, group=3, seed=1, temperature=1.0, top_k=0, tokens=TOKENS):
    key = (temperature, top_k, tokens)
    if key not in SAMPLERS:
        SAMPLERS[key] = GroupSampler(captioner, tokens, Sampled(temperature, top_k))
    sampler = SAMPLERS[key]
    draws = uniforms(seed, 0, 0, features.shape[0] * group, tokens).reshape(-1, group, tokens)
    return [output.asnumpy() for output in sampler(features, Tensor(draws))]


class Draw(nn.Cell):
    def __init__(self, last):
        super().__init__()
        self.inverse_cdf = InverseCDF(last)

    def construct(self, logits, draws):
        return self.inverse_cdf(ops.softmax(logits, -1), ops.expand_dims(draws, 1))


def test_inverse_cdf_at_the_ends_with_first_and_last_ids_masked(mode):
    logits = np.full((4, 6), np.log(0.25), np.float32)
    logits[:, [0, 5]] = -1e9
    draws = np.array([0.0, 1 - 2.0**-24, 0.25, 0.5 - 2.0**-24], np.float32)
    # cumulative .25 .5 .75 1 over ids 1..4: 0 -> 1, just below 1 -> 4, exactly .25 -> 2, just below .5 -> 2
    assert Draw(4)(Tensor(logits), Tensor(draws)).asnumpy().tolist() == [1, 4, 2, 2]


def test_inverse_cdf_never_leaves_the_allowed_ids_at_bert_size():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 30522)).astype(np.float32)
    logits[:, :999] = logits[:, 30000:] = -1e9
    for draw in (0.0, 1 - 2.0**-24):
        ids = Draw(29999)(Tensor(logits), Tensor(np.full(8, draw, np.float32))).asnumpy()
        assert ((ids >= 999) & (ids < 30000)).all()


@pytest.mark.parametrize("vocab", [50, 256, 30522])  # one block, whole blocks, a last block with padding
def test_inverse_cdf_equals_numpy_searchsorted(vocab):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (500, vocab)).astype(np.float32)
    draws = uniforms(1, 0, 0, 500, 1)[:, 0]
    ids = Draw(vocab - 1)(Tensor(logits), Tensor(draws)).asnumpy()
    cumulative = softmax(logits).cumsum(1)
    expected = np.array([np.searchsorted(row, u, side="right") for row, u in zip(cumulative, draws)])
    near = np.array([np.abs(row - u).min() < 3e-7 for row, u in zip(cumulative, draws)])
    assert (ids == expected)[~near].all() and near.mean() < 0.05


def test_first_and_second_tokens_follow_the_softmax(captioner, features, allowed):
    """Chi-square of 20,000 draws from one memory; p = 1e-4 at the bound."""
    group, critical = 20_000, {8: 31.8, 9: 33.7, 7: 29.9, 6: 27.9, 5: 25.7, 4: 23.5, 3: 21.1, 2: 18.4, 1: 15.1}
    ids, mask, _ = sample(captioner, features[:1], allowed, group, tokens=2)
    forced = Forced(captioner)

    def check(prefix, drawn):
        inputs = np.array([[BOS, *prefix]], np.int32)
        shares = softmax(forced(features[:1], Tensor(inputs)).asnumpy()[0, -1])
        counts = np.bincount(drawn, minlength=VOCAB)
        expected = shares * len(drawn)
        likely = expected >= 5  # the rest is pooled
        observed = np.append(counts[likely], counts[~likely].sum())
        expected = np.append(expected[likely], expected[~likely].sum())
        observed, expected = observed[expected > 0.5], expected[expected > 0.5]
        assert ((observed - expected) ** 2 / expected).sum() < critical[len(expected) - 1]
        assert counts[~allowed].sum() == 0

    check([], ids[:, 0])
    common = np.bincount(ids[ids[:, 0] != EOS, 0]).argmax()
    check([common], ids[ids[:, 0] == common, 1])


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.7, 0), (1.3, 4)])
def test_old_logprobs_equal_teacher_forced_logprobs(mode, captioner, features, allowed, temperature, top_k):
    ids, mask, old = sample(captioner, features, allowed, temperature=temperature, top_k=top_k)
    again = LogprobCell(captioner, Sampled(temperature, top_k))(features, Tensor(ids)).asnumpy()
    np.testing.assert_allclose(again[mask > 0], old[mask > 0], atol=1e-4)
    assert (old[mask == 0] == 0).all()


def test_float16_sampler_and_loss_agree_on_logprobs(half_captioner, features, allowed):
    """They round in other places; the ratio of a first update stays far inside the clip range of 0.2."""
    draws = Tensor(uniforms(1, 0, 0, 40, TOKENS).reshape(2, 20, TOKENS))
    sampler = GroupSampler(half_captioner, TOKENS, Sampled())
    ids, mask, old = (output.asnumpy() for output in sampler(features, draws))
    again = LogprobCell(half_captioner, Sampled())(features, Tensor(ids)).asnumpy()
    assert 0 < np.abs(again[mask > 0] - old[mask > 0]).max() < 0.02


def test_logprobs_are_those_of_the_softmax_over_allowed_tokens(captioner, features, allowed):
    ids, mask, old = sample(captioner, features, allowed)
    inputs = np.concatenate([np.full((len(ids), 1), BOS, np.int32), ids[:, :-1]], 1)
    logits = Forced(captioner)(features, Tensor(inputs)).asnumpy()[..., allowed]
    shares = softmax(logits)
    place = {token: index for index, token in enumerate(np.flatnonzero(allowed))}
    for m, t in np.argwhere(mask > 0):
        assert old[m, t] == pytest.approx(np.log(shares[m, t, place[ids[m, t]]]), abs=1e-4)


def test_graph_and_pynative_agree(captioner, features, allowed):
    results = []
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        ms.set_context(mode=mode)
        results.append(sample(captioner, features, allowed, 200))
    ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_allclose(results[0][2], results[1][2], atol=1e-5)


def test_the_mask_counts_up_to_and_including_the_first_sampled_eos(captioner, features, allowed):
    ids, mask, _ = sample(captioner, features, allowed, 200)
    ended = 0
    for row, counts in zip(ids, mask):
        places = np.flatnonzero(row == EOS)
        length = places[0] + 1 if len(places) else TOKENS
        ended += len(places)
        assert counts.tolist() == [1.0] * length + [0.0] * (TOKENS - length)
        assert (row[length:] == PAD).all()
    assert 0 < ended < 400  # both kinds of row occur


def test_rows_are_image_major_and_independent_of_the_group_size(captioner, features, allowed):
    small = sample(captioner, features[:1], allowed, 3)
    large = sample(captioner, features, allowed, 3)
    np.testing.assert_array_equal(small[0], large[0][:3])  # rows 0 to 2 are image 0


def test_a_rollout_is_repeatable_and_keyed_by_the_seed(captioner, features, allowed):
    one, two, other = (sample(captioner, features, allowed, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_greedy_takes_the_most_probable_token(mode, captioner, features, allowed):
    ids, mask, logprobs = (x.asnumpy() for x in GreedyDecoder(captioner, TOKENS)(features))
    inputs = np.concatenate([np.full((len(ids), 1), BOS, np.int32), ids[:, :-1]], 1)
    logits = Forced(captioner)(features, Tensor(inputs)).asnumpy()
    assert (logits.argmax(-1) == ids)[mask > 0].all() and allowed[ids[mask > 0]].all()
    assert (logprobs[mask == 0] == 0).all() and (logprobs[mask > 0] < 0).all()


def test_top_k_keeps_the_k_best_and_a_given_token(mode):
    logits = Tensor(np.array([[1.0, 4.0, 3.0, 2.0]], np.float32))
    kept = policy_logits(logits, Sampled(2.0, 2)).asnumpy()
    assert kept[0, 1] == 2.0 and kept[0, 2] == 1.5 and (kept[0, [0, 3]] < -1e8).all()
    with_token = policy_logits(logits, Sampled(1.0, 2), Tensor(np.array([0], np.int32))).asnumpy()
    assert with_token[0, 0] == 1.0 and with_token[0, 3] < -1e8


def test_the_greedy_row_is_greedy_decoding_and_leaves_the_samples_alone(captioner, features, allowed):
    group = 3
    draws = uniforms(1, 0, 0, 2 * group, TOKENS).reshape(2, group, TOKENS)
    alone = GroupSampler(captioner, TOKENS, Sampled())(features, Tensor(draws))
    joint = GroupSampler(captioner, TOKENS, Sampled(), greedy=True)(features, Tensor(draws))
    joint = [output.asnumpy().reshape(2, group + 1, TOKENS) for output in joint]
    for expected, output in zip(alone, joint):
        np.testing.assert_allclose(output[:, :group].reshape(-1, TOKENS), expected.asnumpy(), atol=1e-5)
    for expected, output in zip(GreedyDecoder(captioner, TOKENS)(features), joint):
        np.testing.assert_allclose(output[:, group], expected.asnumpy(), atol=1e-5)
