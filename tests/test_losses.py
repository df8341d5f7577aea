import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses.cross_entropy import cross_entropy_loss
from src.losses.grpo import GRPO_STATS, grpo_loss
from src.losses.tokens import token_weights

PLAIN = dict(clip_eps_low=0.2, clip_eps_high=0.2, kl_coef=0.04, importance_weight=False)


class LossCell(nn.Cell):
    """grpo_loss as a graph."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def construct(self, logprobs, old, ref, advantages, weights):
        return grpo_loss(logprobs, old, ref, advantages, weights, **self.settings)


class ScalarCell(nn.Cell):
    """The loss without its statistics, to be differentiated."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, *inputs):
        return self.cell(*inputs)[0]


def run(arrays, aggregation="token", **settings):
    cell = LossCell(**(PLAIN | settings))
    arrays = (*arrays[:4], token_weights(np.asarray(arrays[4]), aggregation))
    loss, stats = cell(*(Tensor(np.asarray(array, np.float32)) for array in arrays))
    return float(loss.asnumpy()), {name: float(value.asnumpy()) for name, value in zip(GRPO_STATS, stats)}


def gradient(arrays, **settings):
    arrays = (*arrays[:4], token_weights(np.asarray(arrays[4]), "token"))
    grad = ms.grad(ScalarCell(LossCell(**(PLAIN | settings))), grad_position=0)
    return grad(*(Tensor(np.asarray(array, np.float32)) for array in arrays)).asnumpy()


def expected(
    logprobs, old, ref, advantages, mask, clip_eps_low, clip_eps_high, kl_coef, importance_weight, aggregation="token"
):
    """Equation 3 of arXiv:2402.03300 token by token, in float64."""
    values = np.zeros_like(logprobs)
    for m, t in np.ndindex(*logprobs.shape):
        if mask[m, t]:
            ratio = np.exp(logprobs[m, t] - old[m, t])
            clipped = min(max(ratio, 1 - clip_eps_low), 1 + clip_eps_high)
            difference = ref[m, t] - logprobs[m, t]
            k3 = np.exp(difference) - difference - 1
            policy = min(ratio * advantages[m], clipped * advantages[m])
            values[m, t] = policy - kl_coef * k3 * (ratio if importance_weight else 1)
    if aggregation == "sequence":
        return -(values.sum(1) / mask.sum(1)).mean()
    return -values.sum() / (mask.size if aggregation == "constant" else mask.sum())


def random_case(seed=0, rows=6, tokens=5):
    rng = np.random.default_rng(seed)
    logprobs, old, ref = (-rng.uniform(0.5, 2, (rows, tokens)) for _ in range(3))
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (rows, 1))).astype(np.float64)
    return logprobs, old, ref, rng.normal(size=rows), mask


def test_hand_worked_example(mode):
    """Two rows, three tokens; the second row has two that count.

    ratios: row 0: 1.5, 1, 0.5; row 1: 1.5, 0.5.   A = +1 and -1, eps 0.2
    row 0 (A=+1): min(1.5, 1.2) = 1.2 (clipped), 1, min(0.5, 0.8) = 0.5
    row 1 (A=-1): min(-1.5, -1.2) = -1.5, min(-0.5, -0.8) = -0.8 (clipped)
    sum = 1.2 + 1 + 0.5 - 1.5 - 0.8 = 0.4 over 5 tokens: policy_loss = -0.08
    ref = old + ln 2 on every token, so ref - lp = ln(2/ratio) and k3 = 2/ratio - ln(2/ratio) - 1:
    ratio 1.5: 0.045651..., 1: 0.306853..., 0.5: 1.613706...; sum = 2*0.045651 + 0.306853 + 2*1.613706 = 3.625567
    kl = 0.725113; loss = -0.08 + 0.04*0.725113 = -0.0509955; clip_fraction = 2/5; ratio_mean = (1.5+1+.5+1.5+.5)/5 = 1
    """
    old = np.full((2, 3), -1.0)
    logprobs = old + np.log([[1.5, 1.0, 0.5], [1.5, 0.5, 7.0]])
    mask = [[1, 1, 1], [1, 1, 0]]
    loss, stats = run((logprobs, old, old + np.log(2), [1, -1], mask))
    k3 = [2 / r - np.log(2 / r) - 1 for r in (1.5, 1.0, 0.5, 1.5, 0.5)]
    assert stats["policy_loss"] == pytest.approx(-0.08, abs=1e-6)
    assert stats["kl"] == pytest.approx(0.725113, abs=1e-5) == pytest.approx(np.mean(k3), abs=1e-5)
    assert loss == pytest.approx(-0.0509955, abs=1e-6)
    assert stats["clip_fraction"] == pytest.approx(0.4, abs=1e-6)
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("importance_weight", [False, True])
@pytest.mark.parametrize("eps", [(0.2, 0.2), (0.2, 0.28)])
def test_equals_float64_reference(mode, aggregation, importance_weight, eps):
    settings = PLAIN | dict(
        aggregation=aggregation, importance_weight=importance_weight, clip_eps_low=eps[0], clip_eps_high=eps[1]
    )
    case = random_case()
    loss, _ = run(case, **settings)
    assert loss == pytest.approx(expected(*case, **settings), rel=2e-6, abs=1e-6)


def test_gradient_equals_finite_differences(mode):
    case = random_case(3)
    grad = gradient(case)
    for m, t in [(0, 0), (2, 1), (5, 0), (3, 4)]:
        moved = [case[0].copy(), case[0].copy()]
        moved[0][m, t] += 1e-6
        moved[1][m, t] -= 1e-6
        slope = (expected(moved[0], *case[1:], **PLAIN) - expected(moved[1], *case[1:], **PLAIN)) / 2e-6
        assert grad[m, t] == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("junk", [0.0, -1e9, 50.0])
def test_what_lies_under_the_mask_never_matters(junk):
    case = random_case()
    hidden = tuple(np.where(case[4] > 0, array, junk) for array in case[:3])
    loss, stats = run((*hidden, *case[3:]))
    assert loss == run(case)[0] and np.isfinite(list(stats.values())).all()
    grad = gradient((*hidden, *case[3:]))
    assert (grad[case[4] == 0] == 0).all() and np.isfinite(grad).all()


def test_zero_advantages_without_kl_have_zero_gradient():
    case = random_case()
    assert (gradient((*case[:3], np.zeros(6), case[4]), kl_coef=0.0) == 0).all()


def test_the_first_update_has_ratio_one_and_policy_gradient():
    logprobs, _, _, advantages, mask = random_case()
    case = (logprobs, logprobs, logprobs, advantages, mask)
    loss, stats = run(case)
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-6) and stats["kl"] == 0.0 and stats["clip_fraction"] == 0.0
    np.testing.assert_allclose(gradient(case), -advantages[:, None] * mask / mask.sum(), atol=1e-6)


def test_cross_entropy_with_label_smoothing(mode):
    logprobs = np.array([[-1.0, -2.0], [-3.0, -9.0]], np.float32)
    mean = np.array([[-4.0, -4.0], [-5.0, -9.0]], np.float32)
    mask = np.array([[1, 1], [1, 0]], np.float32)
    # 0.9 * (1 + 2 + 3) / 3 + 0.1 * (4 + 4 + 5) / 3 = 1.8 + 0.43333
    weights = Tensor(token_weights(mask, "token"))
    loss = cross_entropy_loss(Tensor(logprobs), Tensor(mean), weights, 0.1)
    assert float(loss.asnumpy()) == pytest.approx(2.2333333, abs=1e-6)
