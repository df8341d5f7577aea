"""When CE ends early."""

from src.training.ce import out_of_patience


def test_patience_counts_validations_since_the_best():
    # validations at steps 10, 20, ... ; the best was the second
    assert not out_of_patience(30, 20, steps=2 * 10)
    assert out_of_patience(40, 20, steps=2 * 10)
    assert not out_of_patience(400, 20, steps=0)
    assert not out_of_patience(0, 0, steps=10)
