import hashlib

import numpy as np
import pytest

from src.runtime.rng import counter_of, generator, keep_masks, uniforms


def test_a_row_is_the_same_however_the_rows_are_divided():
    whole = uniforms(seed=3, step=7, first_row=0, rows=10, columns=6)
    parts = [uniforms(3, 7, first, rows, 6) for first, rows in ((0, 4), (4, 1), (5, 5))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    masks = keep_masks(3, 7, 0, 6, (2, 5), 0.1)
    np.testing.assert_array_equal(masks[2:5], keep_masks(3, 7, 2, 3, (2, 5), 0.1))


def test_uniforms_are_below_one_in_float32_and_uniform():
    draws = uniforms(seed=1, step=0, first_row=0, rows=5000, columns=20)
    assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() <= 1 - 2.0**-24
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 94.6  # chi-square, 49 degrees of freedom: p = 1e-4


@pytest.mark.parametrize("other", [dict(seed=2), dict(step=1)])
def test_other_keys_give_other_numbers(other):
    one = dict(seed=1, step=0, first_row=0, rows=4, columns=8)
    assert (uniforms(**one) != uniforms(**(one | other))).mean() > 0.99


def test_streams_of_one_seed_differ():
    assert generator("data", 1, 0).random() != generator("captions", 1, 0).random()


def test_keep_masks_keep_the_stated_share():
    masks = keep_masks(1, 0, 0, 100, (4, 25, 64), 0.1)
    assert abs(masks.mean() - 0.9) < 4 * (0.09 / masks.size) ** 0.5
    assert keep_masks(1, 0, 0, 3, (5,), 0.0).all()
    sites = keep_masks(1, 0, 0, 100, (2, 25, 64), np.array([0.9, 0.0]).reshape(2, 1, 1))
    assert abs(sites[:, 0].mean() - 0.1) < 4 * (0.09 / 160000) ** 0.5 and sites[:, 1].all()


def test_permutations_depend_on_the_epoch_only():
    first = generator("data", 1, 0).permutation(100)
    np.testing.assert_array_equal(first, generator("data", 1, 0).permutation(100))
    assert sorted(first) == list(range(100)) and (first != generator("data", 1, 1).permutation(100)).any()


def test_names_count_as_numbers():
    """A number as it is, so that draws for images of COCO stay what they were; 8 bytes of BLAKE2b of a text."""
    assert [counter_of(value) for value in (0, 391895, 2**64 - 1)] == [0, 391895, 2**64 - 1]
    assert counter_of("1.jpg") == int.from_bytes(hashlib.blake2b(b"1.jpg", digest_size=8).digest(), "big")
    assert len({counter_of(value) for value in (1, "1", "2", -1, 2**64)}) == 5
    assert all(0 <= counter_of(value) < 2**64 for value in ("", "日本.jpg", -1, 2**70))
