"""When CE ends early."""

from src.training.ce import out_of_patience


def test_patience_counts_validations_since_the_best():
    # validations at steps 10, 20, ... ; the best was the second
    assert not out_of_patience({"step": 30, "best_step": 20}, 10, patience=2)
    assert out_of_patience({"step": 40, "best_step": 20}, 10, patience=2)
    assert not out_of_patience({"step": 400, "best_step": 20}, 10, patience=0)
    assert not out_of_patience({"step": 0, "best_step": 0}, 10, patience=1)
