"""Stage 2: GRPO or SCST. Sample groups on the device, reward them on the host, update on the device.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens.
"""

import time

import numpy as np

from src.losses.cells import GRPOLossCell
from src.losses.grpo import token_weights
from src.models.captioner.policy import Captioner
from src.models.checkpoint import load_checkpoint
from src.rl.rollout import Rollout
from src.runtime.errors import RunStopped
from src.runtime.progress import Progress
from src.runtime.rng import permutation
from src.training.checkpoint import optimizer_parameters
from src.training.collector import RolloutCollector
from src.training.optim import build_optimizer, learning_rates
from src.training.run import Run
from src.training.step import Step, build_loss_scale, build_step

SAVE_SECONDS = 60  # between checkpoints: rollouts may be shorter than it takes to write one


def minibatches(images: int, size: int, seed: int, index: int, number: int) -> list[np.ndarray]:
    """Pass `number` over rollout `index`: a shuffled division of range(images) into arrays of `size`."""
    return list(permutation("minibatch", seed, (index, number), images).reshape(-1, size))


def run_rl(run: Run, reference: Captioner) -> None:
    """Train from the state of `run` to its last rollout.

    Checkpoints are taken between rollouts: with every validation, after SAVE_SECONDS, and on SIGTERM unless it arrives
    in a pass over a rollout that is not the last, which the checkpoint before then repeats.
    """
    config = run.config
    grpo = config.grpo
    total_steps = grpo.rollouts * config.updates_per_rollout
    rates = learning_rates(grpo.optimizer, total_steps)
    optimizer = build_optimizer(run.captioner.trained_parameters(), grpo.optimizer, rates)
    loss_scale = build_loss_scale(config.precision)
    optimizer_state = optimizer_parameters(optimizer, run.captioner, loss_scale)
    if run.resumed is not None:
        load_checkpoint(run.resumed, run.captioner, optimizer_state)
    run.workers.broadcast([*run.captioner.get_parameters(), *optimizer_state.values(), *reference.get_parameters()])
    if run.resumed is None:
        run.log(run.validate())  # the CE model is the first candidate for `best`
        run.save("last", optimizer_state)
    collector = RolloutCollector(run, reference)
    loss_cell = GRPOLossCell(run.captioner, run.tokenizer.bos_id, config)
    take_step = build_step(
        loss_cell,
        optimizer,
        loss_scale,
        grpo.optimizer.grad_clip,
        grpo.micro_batches,
        run.workers.size,
        run.graphs.keep,
    )
    bar = Progress(config.stage.upper(), total_steps, "update", start=run.state["step"])
    saved_at = time.monotonic()
    for index in range(run.state["step"] // config.updates_per_rollout, grpo.rollouts):
        try:
            rollout, rollout_stats = collector.collect(index)
        except RunStopped:
            run.save("last", optimizer_state)
            run.workers.wait()  # msrun kills the others when one has ended
            raise
        run.watch.rollout(rollout, rollout_stats["rollout/truncated"])
        if run.must_stop():  # nothing has been updated since the rollout before
            run.save("last", optimizer_state)
            run.stop()
        run.state["seconds"] += rollout_stats["time/rollout_s"] + rollout_stats["time/reward_s"]
        for number in range(grpo.passes):
            if number > 0 and run.must_stop():  # all workers are asked: not before every update
                run.stop()
            stats = _pass(run, rollout, rollout_stats, index, number, take_step, rates, bar)
            rollout_stats = {}
        validated = (index + 1) % config.eval.every == 0 or index + 1 == grpo.rollouts
        if validated:
            scores = run.validate()
            run.log(scores)
            run.say(
                f"{config.stage.upper()} rollout {index + 1}/{grpo.rollouts}: reward {rollout.reward_mean:.3f}, "
                f"KL {stats['train/kl']:.4f}, val CIDEr {100 * scores['val/CIDEr']:.1f}"
            )
        stopping = run.must_stop()
        if validated or stopping or time.monotonic() - saved_at > SAVE_SECONDS:
            run.save("last", optimizer_state)
            saved_at = time.monotonic()
        if stopping:
            run.stop()
    bar.close()


def _pass(
    run: Run,
    rollout: Rollout,
    rollout_stats: dict[str, float],
    index: int,
    number: int,
    take_step: Step,
    rates: np.ndarray,
    bar: Progress,
) -> dict[str, float]:
    """One pass of updates over a rollout; returns the statistics of its last update."""
    grpo = run.config.grpo
    parts = [
        rollout.groups(rows)
        for rows in minibatches(grpo.rollout_images, grpo.update_images, run.config.seed, index, number)
    ]
    names = [f"train/{name}" for name in ("loss", "grad_norm", *GRPOLossCell.STATS, "loss_scale")]
    logged: dict[str, float] = {}
    share = run.workers.share
    for part, inputs in zip(parts, run.train_source.batches([share(part.image_rows) for part in parts])):
        started = time.perf_counter()
        weights = token_weights(part.completion_mask, run.config.loss.aggregation)
        rows = (part.completion_ids, weights, part.old_logprobs, part.ref_logprobs, part.advantages)
        values = take_step(inputs, *map(share, rows))
        run.check_finite(values)
        seconds = time.perf_counter() - started
        logged = dict(zip(names, values)) | {"time/update_s": seconds}
        logged["train/lr"] = rates[run.state["step"]]
        run.state["seconds"] += seconds
        run.state["step"] += 1
        if run.state["step"] % run.config.log_every == 0 or rollout_stats:
            run.log(rollout_stats | logged)
            rollout_stats = {}
        bar.update(note=f"reward {rollout.reward_mean:.3f}, KL {logged['train/kl']:.4f}")
    return logged
