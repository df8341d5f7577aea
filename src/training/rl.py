"""Stage 2: GRPO or SCST. Sample groups on the device, reward them on the host, update on the device.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, k rewards.
"""

import time

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from src.decoding.sampler import GroupSampler
from src.models.captioner import Captioner
from src.rewards.completions import decode_completions
from src.rewards.mixture import Rewards
from src.rl.advantage import combined_advantages, total_rewards, zero_advantage_groups
from src.rl.cells import GRPOLossCell, LogprobCell
from src.rl.losses import token_weights
from src.rl.rollout import Rollout
from src.rng import permutation, uniforms
from src.training.checkpoint import load_checkpoint, optimizer_parameters
from src.training.optim import build_optimizer, learning_rates
from src.training.run import Run
from src.training.step import Step, build_loss_scale, build_step

SAVE_SECONDS = 60  # between checkpoints: rollouts may be shorter than it takes to write one


class RolloutCollector:
    """Samples, rewards and scores a rollout of `rollout_images` images in batches of `sample_images`."""

    def __init__(self, run: Run, reference: Captioner, rewards: Rewards) -> None:
        self.run = run
        self.config = run.config
        self.rewards = rewards
        grpo, tokenizer = run.config.grpo, run.tokenizer
        greedy = run.config.advantage.baseline == "greedy"
        sampler = GroupSampler(
            run.captioner, tokenizer.specials, tokenizer.allowed, grpo.temperature, grpo.top_k, greedy
        )
        self.sampler = run.graphs.keep("sampler", sampler)
        ref_logprobs = LogprobCell(reference, tokenizer.bos_id, grpo.temperature, grpo.top_k)
        self.ref_logprobs = run.graphs.keep("reference", ref_logprobs)

    def collect(self, index: int) -> tuple[Rollout, dict[str, float]]:
        """Rollout number `index`, a pure function of parameters and configuration, and its statistics.

        Each worker samples and rewards its share of every batch; all get the whole rollout, and so the same advantages.
        """
        grpo, workers = self.config.grpo, self.run.workers
        images = rollout_images(len(self.run.dataset.records["train"]), grpo.rollout_images, self.config.seed, index)
        batches = np.arange(len(images)).reshape(-1, grpo.sample_images)
        places = [workers.share(batch) for batch in batches]  # of this worker's images in the rollout
        started = time.perf_counter()
        completion_ids, mask, old_logprobs, *greedy, ref_logprobs = self._sample(index, images, places)
        sampled_at = time.perf_counter()
        rewards, greedy_rewards = self._reward(images, places, completion_ids, mask, *greedy)
        rewarded_at = time.perf_counter()

        def whole(rows: np.ndarray) -> np.ndarray:
            return workers.gather(np.split(rows, len(batches)))

        completion_ids, mask, old_logprobs, ref_logprobs = map(
            whole, (completion_ids, mask, old_logprobs, ref_logprobs)
        )
        rewards = whole(rewards).reshape(len(images), grpo.group_size, -1)  # [B, G, k]
        greedy_rewards = whole(greedy_rewards) if greedy else None  # [B, k]
        weights = self.rewards.weights
        advantages = combined_advantages(rewards, weights, self.config.advantage, greedy_rewards)
        rollout = Rollout(
            image_rows=images,
            completion_ids=completion_ids,
            completion_mask=mask,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs * mask,
            rewards=total_rewards(rewards, weights).astype(np.float32),
            advantages=advantages,
        )
        ended = (completion_ids == self.run.tokenizer.eos_id).any(1)
        stats = {
            "rollout/reward_mean": rollout.reward_mean,
            "rollout/reward_std": np.nanstd(rollout.rewards),
            "rollout/advantage_std": advantages.std(),
            "rollout/zero_spread_groups": zero_advantage_groups(advantages, grpo.group_size),
            "rollout/length_mean": mask.sum(1).mean(),
            "rollout/truncated": 1.0 - ended.mean(),
            "time/rollout_s": sampled_at - started,
            "time/reward_s": rewarded_at - sampled_at,
        }
        for number, name in enumerate(self.rewards.names):
            stats[f"rollout/reward_{name}_mean"] = np.nanmean(rewards[..., number])
            stats[f"rollout/reward_{name}_std"] = np.nanstd(rewards[..., number])
        if greedy:
            stats["rollout/greedy_reward_mean"] = np.nanmean(greedy_rewards @ weights)
        return rollout, stats

    def _sample(self, index: int, images: np.ndarray, places: list[np.ndarray]) -> list[np.ndarray]:
        """This worker's completion_ids, mask and old_logprobs [rows, T], ids and mask of greedy captions [images, T]
        where the baseline is greedy, and ref_logprobs [rows, T]."""
        grpo, seed = self.config.grpo, self.config.seed
        parts = []
        for own, inputs in zip(places, self.run.train_source.batches([images[own] for own in places])):
            rows = len(own) * grpo.group_size
            draws = uniforms(seed, index, own[0] * grpo.group_size, rows, grpo.tokens)
            inputs = Tensor(inputs)
            sampled = self.sampler(inputs, Tensor(draws.reshape(len(own), grpo.group_size, -1)))
            ref_logprobs = self.ref_logprobs(inputs, sampled[0])
            parts.append([output.asnumpy() for output in (*sampled, ref_logprobs)])
        return [np.concatenate(rows) for rows in zip(*parts)]

    def _reward(
        self, images: np.ndarray, places: list[np.ndarray], ids: np.ndarray, mask: np.ndarray, *greedy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards float32 [rows, k] of this worker's samples, and [images, k] of its greedy captions (none: empty)."""
        own_images = images[np.concatenate(places)]
        image_rows = np.repeat(own_images, self.config.grpo.group_size)
        samples = len(image_rows)
        if greedy:  # rewarded in the same call
            ids, mask = np.concatenate([ids, greedy[0]]), np.concatenate([mask, greedy[1]])
            image_rows = np.concatenate([image_rows, own_images])
        rewards = self.rewards(decode_completions(self.run.tokenizer, image_rows, ids, mask))
        return rewards[:samples], rewards[samples:]


def rollout_images(rows: int, size: int, seed: int, index: int) -> np.ndarray:
    """Which training images rollout `index` takes, int64 [size]: epochs are shuffled anew, their rest is dropped."""
    per_epoch = rows // size
    epoch, place = divmod(index, per_epoch)
    return permutation("data", seed, (epoch,), rows)[place * size : (place + 1) * size]


def minibatches(images: int, size: int, seed: int, index: int, number: int) -> list[np.ndarray]:
    """Pass `number` over rollout `index`: a shuffled division of range(images) into arrays of `size`."""
    return list(permutation("minibatch", seed, (index, number), images).reshape(-1, size))


def run_rl(run: Run, reference: Captioner) -> None:
    """Train from the state of `run` to its last rollout.

    Checkpoints are taken between rollouts: with every validation, after SAVE_SECONDS, and on SIGTERM unless it arrives
    between two updates of a rollout, which the checkpoint before then repeats.
    """
    config = run.config
    grpo = config.grpo
    rewards = Rewards(config, run.dataset.ground_truths["train"])
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
    collector = RolloutCollector(run, reference, rewards)
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
    bar = run.progress(config.stage.upper(), total_steps, "update")
    saved_at = time.monotonic()
    for index in range(run.state["step"] // config.updates_per_rollout, grpo.rollouts):
        rollout, rollout_stats = collector.collect(index)
        if run.must_stop():  # nothing has been updated since the rollout before
            run.save("last", optimizer_state)
            run.stop()
        run.state["seconds"] += rollout_stats["time/rollout_s"] + rollout_stats["time/reward_s"]
        for number in range(grpo.passes):
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
    bar: tqdm,
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
        if run.must_stop():
            run.stop()
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
        bar.set_postfix(reward=f"{rollout.reward_mean:.3f}", KL=f"{logged['train/kl']:.4f}", refresh=False)
        bar.update()
    return logged
