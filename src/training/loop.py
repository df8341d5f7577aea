"""The training loop, shared by every objective, and the objective of RL.

A unit is an epoch for CE and a rollout for RL. Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from mindspore import nn

from src.losses.grpo import GRPOLossCell
from src.losses.tokens import token_weights
from src.models.checkpoint import load_checkpoint
from src.rl.collector import RolloutCollector
from src.runtime.errors import RunStopped
from src.runtime.progress import Progress
from src.runtime.rng import generator
from src.training.checkpoint import optimizer_parameters
from src.training.optim import build_optimizer, learning_rates
from src.training.run import Run
from src.training.run_folder import FIRST
from src.training.step import Step, Update, build_loss_scale, build_step

SAVE_SECONDS = 60  # between checkpoints: writing one may take longer than a rollout


class Batch(NamedTuple):
    """This worker's inputs of the loss cell for one update.

    seconds: training time spent on preparing them; logged: statistics to log with this update; may_stop: whether the
    workers check before this update if the run must stop.
    """

    arrays: tuple[np.ndarray, ...]
    seconds: float = 0.0
    logged: dict[str, float] = {}  # noqa: RUF012 (never written to)
    may_stop: bool = True


class Objective(Protocol):
    """A training objective of `units` times `updates` updates.

    validates_first: whether the initial weights may become `best`. resumes_within_unit: whether a run can resume from a
    checkpoint between two updates of a unit. save_steps: updates between such checkpoints; 0 for none.
    """

    label: str
    unit: str
    units: int
    updates: int
    settings: Any  # CEConfig or RLConfig
    loss_cell: nn.Cell
    validates_first: bool
    resumes_within_unit: bool
    save_steps: int

    def ends_before(self, unit: int) -> str | None:
        """Return why training ends before `unit`, or None to continue."""

    def batches(self, unit: int, first: int) -> Iterator[Batch]:
        """Yield the batches of a unit, starting with its update `first`."""

    def describe(self, stats: dict[str, float]) -> str:
        """Summarise the statistics of an update in a few words."""


def train(run: Run, objective: Objective) -> None:
    """Train from the state of `run` to the last unit of the objective.

    Saves a checkpoint after a unit if it was validated, if SAVE_SECONDS have passed, or if the run must stop. A run
    that stops within a unit saves one only if the objective can resume there; otherwise it repeats the unit.
    """
    config, state = run.config, run.state
    rates = learning_rates(objective.settings.optimizer, objective.units * objective.updates)
    take_step = _prepare(run, objective, rates)
    bar = Progress(objective.label, len(rates), "update", start=state.step)
    saved_at, saved_step = time.monotonic(), state.step
    for unit in range(state.step // objective.updates, objective.units):
        reason = objective.ends_before(unit)
        if reason is not None:
            run.say(reason)
            break
        for batch in objective.batches(unit, state.step % objective.updates):
            if batch.may_stop:
                stopping = run.must_stop()
                due = objective.save_steps and state.step % objective.save_steps == 0 and state.step > saved_step
                if due or (stopping and (objective.resumes_within_unit or state.step % objective.updates == 0)):
                    run.save("last")
                    saved_step = state.step
                if stopping:
                    run.stop()
            started = time.perf_counter()
            stats = take_step(*batch.arrays)
            run.check_finite(stats)
            seconds = time.perf_counter() - started
            logged = {f"train/{name}": value for name, value in stats.items()}
            logged |= {"time/update_s": seconds, "train/lr": rates[state.step]}
            state.seconds += batch.seconds + seconds
            state.step += 1
            if batch.logged or state.step % config.log_every == 0:
                run.log(batch.logged | logged)
            bar.update(note=objective.describe(stats))
        validated = (unit + 1) % config.eval.every == 0 or unit + 1 == objective.units
        if validated:
            scores = run.validate()
            run.log(scores)
            run.say(
                f"{objective.label} {objective.unit} {unit + 1}/{objective.units}: {objective.describe(stats)}, "
                f"val CIDEr {100 * scores['val/CIDEr']:.1f}"
            )
        if config.stage == "ce" and config.select == "original" and unit == 0:
            run.save(FIRST)
        stopping = run.must_stop()
        if validated or stopping or time.monotonic() - saved_at > SAVE_SECONDS:
            run.save("last")
            saved_at, saved_step = time.monotonic(), state.step
        if stopping:
            run.stop()
    bar.close()


def _prepare(run: Run, objective: Objective, rates: np.ndarray) -> Step:
    """Build the update. Load the optimiser's state if the run resumes; otherwise save the first checkpoint."""
    settings = objective.settings
    optimizer = build_optimizer(run.policy.trained_parameters(), settings.optimizer, rates, run.policy.part_of)
    loss_scale = build_loss_scale(run.config.precision)
    run.optimizer_state = optimizer_parameters(optimizer, run.policy, loss_scale)
    if run.resumed is not None:
        load_checkpoint(run.resumed, run.policy, run.optimizer_state)
    policies = [policy for policy in (run.policy, run.reference) if policy is not None]
    parameters = [parameter for policy in policies for parameter in policy.get_parameters()]
    run.workers.broadcast([*parameters, *run.optimizer_state.values()])
    if run.resumed is None:
        if objective.validates_first:
            run.log(run.validate())
        run.save("last")
    update = Update(optimizer, loss_scale, settings.optimizer.grad_clip, run.workers.size)
    return build_step(objective.loss_cell, update, settings.micro_batches, run.graphs.compile)


class GroupObjective:
    """GRPO or SCST: compare the rewards of a group of completions. A unit is a rollout."""

    unit = "rollout"
    validates_first = True
    resumes_within_unit = False
    save_steps = 0

    def __init__(self, run: Run) -> None:
        assert run.reference is not None and run.rewards is not None
        self.run, self.settings = run, run.config.rl
        self.label = run.config.stage.upper()
        self.units, self.updates = self.settings.rollouts, run.config.updates_per_rollout
        self.loss_cell = GRPOLossCell(run.policy, run.config)
        self.collector = RolloutCollector(
            config=run.config,
            images=len(run.dataset.records["train"]),
            source=run.train_source,
            policy=run.policy,
            reference=run.reference,
            rewards=run.rewards,
            workers=run.workers,
            compile=run.graphs.compile,
        )
        self.reward_mean = 0.0

    def ends_before(self, rollout: int) -> None:
        """Return None: training never ends early."""

    def batches(self, index: int, first: int) -> Iterator[Batch]:
        """Collect rollout number `index`, then yield its minibatches of whole groups, `passes` times."""
        run = self.run
        try:
            rollout, stats = self.collector.collect(index)
        except RunStopped:
            run.save("last")
            run.workers.wait()  # msrun kills the others when one has ended
            raise
        run.watch.rollout(rollout, stats["rollout/truncated"])
        self.reward_mean = rollout.reward_mean
        seconds = stats["time/rollout_s"] + stats["time/reward_s"]
        images, share = self.settings.rollout_images, run.workers.share
        for number in range(self.settings.passes):
            groups = minibatches(images, self.settings.update_images, run.config.seed, index, number)
            parts = [rollout.groups(rows) for rows in groups]
            inputs_of_parts = run.train_source.batches([share(part.image_rows) for part in parts])
            for place, (part, inputs) in enumerate(zip(parts, inputs_of_parts)):
                weights = token_weights(part.completion_mask, run.config.loss.aggregation)
                rows = (part.completion_ids, weights, part.old_logprobs, part.ref_logprobs, part.advantages)
                yield Batch((inputs, *map(share, rows)), seconds, stats, may_stop=place == 0)
                seconds, stats = 0.0, {}

    def describe(self, stats: dict[str, float]) -> str:
        """Summarise reward and KL."""
        return f"reward {self.reward_mean:.3f}, KL {stats['kl']:.4f}"


def minibatches(images: int, size: int, seed: int, index: int, number: int) -> list[np.ndarray]:
    """Shuffle range(images) and divide it into arrays of `size`, for pass `number` over rollout `index`."""
    return list(generator("minibatch", seed, index, number).permutation(images).reshape(-1, size))
