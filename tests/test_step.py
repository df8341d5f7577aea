"""One update against NumPy in float64: clipping by the global norm, AdamW, the schedule, the finite check."""

import dataclasses

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
import pytest
from mindformers.core.lr import CosineWithWarmUpLR
from mindspore import Parameter, Tensor, nn, ops
from mindspore.amp import DynamicLossScaler

from src.config.schema import OptimizerConfig
from src.training.optim import FusedAdamW, build_optimizer, learning_rates
from src.training.step import TrainStep, Update, build_loss_scale, build_step

CONFIG = OptimizerConfig(
    lr=0.1, final_lr=0.01, warmup_ratio=0.25, decay_ratio=0.75, weight_decay=0.2, beta2=0.99, grad_clip=0.5
)
STEPS = 8


class Quadratic(nn.Cell):
    """sum((matrix @ x + vector)^2) with one statistic: the sum."""

    STATS = ("sum",)

    def __init__(self):
        super().__init__()
        self.matrix = Parameter(Tensor(np.arange(6, dtype=np.float32).reshape(2, 3) / 6), name="matrix")
        self.vector = Parameter(Tensor(np.array([0.3, -0.2], np.float32)), name="vector")

    def construct(self, x):
        out = ops.matmul(self.matrix, x) + self.vector
        return ops.reduce_sum(out * out), (ops.reduce_sum(out),)


def expected_rates():
    warmup = int(CONFIG.warmup_ratio * STEPS)
    for step in range(STEPS):
        if step < warmup:
            start = CONFIG.lr / warmup
            yield start + (CONFIG.lr - start) * step / warmup
        else:
            decayed = min(1, (step - warmup) / (CONFIG.decay_ratio * STEPS - warmup))
            cosine = 0.5 * (1 + np.cos(np.pi * decayed))
            yield CONFIG.final_lr + (CONFIG.lr - CONFIG.final_lr) * cosine


def numpy_updates(xs):
    matrix, vector = np.arange(6).reshape(2, 3) / 6, np.array([0.3, -0.2])
    moments = [np.zeros_like(p) for p in (matrix, vector, matrix, vector)]
    rows = []
    for step, (x, lr) in enumerate(zip(xs, expected_rates()), start=1):
        out = matrix @ x + vector
        grads = [2 * np.outer(out, x), 2 * out]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        rows.append([(out**2).sum(), norm, out.sum()])
        grads = [g * min(1, CONFIG.grad_clip / (norm + 1e-6)) for g in grads]
        for i, (parameter, decay) in enumerate(((matrix, CONFIG.weight_decay), (vector, 0.0))):
            moments[i] = 0.9 * moments[i] + 0.1 * grads[i]
            moments[i + 2] = CONFIG.beta2 * moments[i + 2] + (1 - CONFIG.beta2) * grads[i] ** 2
            first, second = moments[i] / (1 - 0.9**step), moments[i + 2] / (1 - CONFIG.beta2**step)
            parameter *= 1 - lr * decay
            parameter -= lr * first / (np.sqrt(second) + 1e-8)
    return matrix, vector, rows


@pytest.fixture
def step_cell():
    cell = Quadratic()
    optimizer = build_optimizer(cell.trainable_params(), CONFIG, learning_rates(CONFIG, STEPS))
    return TrainStep(cell, Update(optimizer, None, CONFIG.grad_clip)), cell


class WeightedSquares(nn.Cell):
    """sum(weights * (x @ matrix)^2): a sum over rows, as build_step wants it."""

    STATS = ("sum",)

    def __init__(self):
        super().__init__()
        self.matrix = Parameter(Tensor(np.arange(6, dtype=np.float32).reshape(3, 2) / 6), name="matrix")

    def construct(self, x, weights):
        out = ops.matmul(x, self.matrix)
        return ops.reduce_sum(weights * ops.square(out)), (ops.reduce_sum(weights * out),)


def test_parts_of_a_batch_give_what_one_batch_gives(mode):
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 3)), rng.uniform(0, 0.2, (8, 2))) for _ in range(4)]
    batches[2][1][:] = np.nan  # nothing is updated, and nothing of it is left in the sums
    results = []
    for micro_batches in (1, 2, 8):
        cell = WeightedSquares()
        optimizer = build_optimizer(cell.trainable_params(), CONFIG, learning_rates(CONFIG, STEPS))
        step = build_step(cell, Update(optimizer, None, CONFIG.grad_clip), micro_batches, lambda name, cell: cell)
        values = [list(step(*(array.astype(np.float32) for array in batch)).values()) for batch in batches]
        results.append((np.array(values), cell.matrix.asnumpy()))
    for values, matrix in results[1:]:
        np.testing.assert_allclose(values, results[0][0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(matrix, results[0][1], rtol=1e-6, atol=1e-7)


def test_equals_float64_adamw(mode, step_cell):
    step, cell = step_cell
    xs = np.random.default_rng(0).normal(size=(STEPS, 3)) * np.linspace(2, 0.01, STEPS)[:, None]  # some are clipped
    values = [step(Tensor(x.astype(np.float32))).asnumpy() for x in xs]
    matrix, vector, rows = numpy_updates(xs)
    np.testing.assert_allclose(values, rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cell.matrix.asnumpy(), matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cell.vector.asnumpy(), vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_nothing_is_updated_where_the_loss_or_the_norm_is_not_finite(mode, step_cell, bad):
    step, cell = step_cell
    before = cell.matrix.asnumpy().copy()
    values = step(Tensor(np.array([bad, 1, 1], np.float32))).asnumpy()
    assert not np.isfinite(values[:2]).all()
    np.testing.assert_array_equal(cell.matrix.asnumpy(), before)
    assert step.update.optimizer.global_step.asnumpy() == 0
    step(Tensor(np.ones(3, np.float32)))
    assert step.update.optimizer.global_step.asnumpy() == 1 and (cell.matrix.asnumpy() != before).any()


class HalfSum(nn.Cell):
    """sum(weight * x), a product in float16."""

    STATS = ("double",)

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.array([0.5, -0.25], np.float32)), name="weight")

    def construct(self, x):
        product = ops.cast(self.weight, mstype.float16) * ops.cast(x, mstype.float16)
        loss = ops.reduce_sum(ops.cast(product, mstype.float32))
        return loss, (loss * 2,)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_overflow_of_float16_halves_the_scale_and_leaves_the_update_out(mode, micro_batches):
    """The gradient is x times the scale: at 3 x 2^15 above 65,504, at 3 x 2^14 not; two good updates double it."""
    cell = HalfSum()
    optimizer = build_optimizer(cell.trainable_params(), CONFIG, learning_rates(CONFIG, STEPS))
    scale = DynamicLossScaler(scale_value=2.0**15, scale_factor=2, scale_window=2)
    step = build_step(cell, Update(optimizer, scale, CONFIG.grad_clip), micro_batches, lambda name, cell: cell)
    x = np.array([[3.0, 2.0]] * micro_batches, np.float32)
    rows, weights = [], []
    for _ in range(4):
        rows.append(list(step(x).values()))
        weights.append(cell.weight.asnumpy().copy())
    np.testing.assert_array_equal([row[-1] for row in rows], [2.0**15, 2.0**14, 2.0**14, 2.0**15])  # before its change
    assert not np.isfinite(rows[0][1]) and np.isfinite(rows[0][0])
    np.testing.assert_array_equal(weights[0], [0.5, -0.25])
    np.testing.assert_allclose(rows[1][:3], [micro_batches, micro_batches * np.sqrt(13), 2 * micro_batches], rtol=1e-6)
    assert (weights[1] != weights[0]).all() and (weights[2] != weights[1]).all()
    assert not np.isfinite(rows[3][1]) and (weights[3] == weights[2]).all()
    assert optimizer.global_step.asnumpy() == 2


def test_a_loss_scale_changes_nothing_where_nothing_overflows(step_cell):
    plain, expected = step_cell
    cell = Quadratic()
    optimizer = build_optimizer(cell.trainable_params(), CONFIG, learning_rates(CONFIG, STEPS))
    update = Update(optimizer, build_loss_scale("float16"), CONFIG.grad_clip)
    step = TrainStep(cell, update)
    for x in np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32):
        values = step(Tensor(x)).asnumpy()
        np.testing.assert_array_equal(values[:-1], plain(Tensor(x)).asnumpy())
        assert values[-1] == 2**15
    np.testing.assert_array_equal(cell.matrix.asnumpy(), expected.matrix.asnumpy())
    np.testing.assert_array_equal(cell.vector.asnumpy(), expected.vector.asnumpy())


def test_the_schedule_warms_up_from_above_zero_and_ends_at_final_lr():
    rates = learning_rates(CONFIG, STEPS)
    np.testing.assert_allclose(rates, list(expected_rates()), rtol=1e-6)
    assert rates[0] > 0


@pytest.mark.parametrize("warmup, decay", [(0.25, 0.75), (0.0, 1.0), (0.1, 0.9)])
def test_the_schedule_equals_mindformers(warmup, decay):
    steps = 30
    theirs = CosineWithWarmUpLR(
        CONFIG.lr,
        warmup_steps=int(warmup * steps),
        total_steps=round(decay * steps),
        lr_end=CONFIG.final_lr,
        warmup_lr_init=CONFIG.lr / max(1, int(warmup * steps)),
    )
    rates = learning_rates(dataclasses.replace(CONFIG, warmup_ratio=warmup, decay_ratio=decay), steps)
    expected = [float(theirs(Tensor(step, ms.int32)).asnumpy()) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_one_operator_per_parameter(step_cell):
    """The class that updates is this project's: MindFormers' `AdamW` of another module makes one of its own."""
    step, _ = step_cell
    assert type(step.update.optimizer) is FusedAdamW
