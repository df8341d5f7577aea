"""Collect rollouts: sample groups on the device, compute rewards and advantages on the host.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, k rewards.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mindspore import Tensor

from src.config.schema import Config
from src.decoding.distribution import Sampled
from src.decoding.generation import compile_generation
from src.decoding.sampler import GroupSampler
from src.losses.grpo import LogprobCell
from src.models.policy import Policy
from src.rewards.mixture import Rewards
from src.rl.advantage import combined_advantages, total_rewards, zero_advantage_groups
from src.rl.rollout import Rollout, moments
from src.runtime.compile_cache import Compile
from src.runtime.errors import RunStopped
from src.runtime.progress import Progress
from src.runtime.rng import generator, uniforms
from src.runtime.workers import Workers


class Source(Protocol):
    """The policy's inputs for each training image."""

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pixels or features of the images in each array of rows [B], in order."""


@dataclass
class RolloutCollector:
    """Samples, rewards and scores rollouts of `rollout_images` images in batches of `sample_images`.

    images: the number of training images. reference: the frozen policy for the KL term.
    """

    config: Config
    images: int
    source: Source
    policy: Policy
    reference: Policy
    rewards: Rewards
    workers: Workers
    compile: Compile

    def __post_init__(self) -> None:
        rl = self.config.rl
        self.greedy = self.config.advantage.baseline == "greedy"
        sampler = GroupSampler(self.policy, rl.tokens, Sampled.of(rl), greedy=self.greedy)
        self.sampler = compile_generation("sampler", sampler, self.compile)
        self.ref_logprobs = self.compile("reference", LogprobCell(self.reference, Sampled.of(rl)))

    def collect(self, index: int) -> tuple[Rollout, dict[str, float]]:
        """Collect rollout number `index` and its statistics, a pure function of parameters and configuration.

        Each worker samples and rewards its share of every batch; all get the whole rollout and thus equal advantages.
        """
        rl, workers = self.config.rl, self.workers
        images = rollout_images(self.images, rl.rollout_images, self.config.seed, index)
        batches = np.arange(len(images)).reshape(-1, rl.sample_images)
        places = [workers.share(batch) for batch in batches]  # of this worker's images in the rollout
        started = time.perf_counter()
        *sampled, greedy_ids, greedy_mask = self._sample(index, images, places)
        sampled_at = time.perf_counter()
        completion_ids, mask = sampled[:2]
        own = self._reward(index, images, places, (completion_ids, mask, greedy_ids, greedy_mask))
        failed = self._failed(index)
        rewarded_at = time.perf_counter()
        gathered = workers.gather([*sampled, *own], len(batches))
        completion_ids, mask, old_logprobs, ref_logprobs, ended, rewards, greedy_rewards = gathered
        rewards = rewards.reshape(len(images), rl.group_size, -1)  # [B, G, k]
        weights = self.rewards.weights
        baseline = greedy_rewards if self.greedy else None
        rollout = Rollout(
            image_rows=images,
            completion_ids=completion_ids,
            completion_mask=mask,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs * mask,
            rewards=total_rewards(rewards, weights).astype(np.float32),
            advantages=combined_advantages(rewards, weights, self.config.advantage, baseline),
        )
        stats = self._statistics(rollout, rewards) | {"rollout/truncated": 1.0 - ended.mean()}
        if failed is not None:
            stats["rollout/caprl_failed"] = failed
        if self.greedy:
            stats["rollout/greedy_reward_mean"] = moments(greedy_rewards @ weights)[0]
        return rollout, stats | {"time/rollout_s": sampled_at - started, "time/reward_s": rewarded_at - sampled_at}

    def _sample(self, index: int, images: np.ndarray, places: list[np.ndarray]) -> list[np.ndarray]:
        """Return this worker's completion_ids, mask, old_logprobs and ref_logprobs [rows, T], then ids and mask of its
        greedy captions [images, T], which are empty unless the baseline is greedy."""
        rl, seed = self.config.rl, self.config.seed
        parts = []
        bar = Progress(f"rollout {index + 1}", len(places), "batch")
        for own, inputs in zip(bar.over(places), self.source.batches([images[own] for own in places])):
            rows = len(own) * rl.group_size
            draws = uniforms(seed, index, int(own[0]) * rl.group_size, rows, rl.tokens)
            inputs = Tensor(inputs)
            outputs = self.sampler(inputs, Tensor(draws.reshape(len(own), rl.group_size, -1)))
            # Without greedy rows, the reference is queued before the host waits for the sampler.
            reference = [] if self.greedy else self._score(inputs, outputs[0])
            groups = [output.asnumpy().reshape(len(own), -1, rl.tokens) for output in outputs]  # [B, G or G+1, T]
            ids, mask, old_logprobs = [group[:, : rl.group_size].reshape(rows, -1) for group in groups]
            greedy = [group[:, rl.group_size :].reshape(-1, rl.tokens) for group in groups[:2]]
            if self.greedy:
                reference = self._score(inputs, Tensor(ids))
            ref_logprobs = np.concatenate([part.asnumpy() for part in reference])
            parts.append([ids, mask, old_logprobs, ref_logprobs, *greedy])
        return [np.concatenate(rows) for rows in zip(*parts)]

    def _score(self, inputs: Tensor, ids: Tensor) -> list[Tensor]:
        """Return the reference's log-probs of a batch of this worker, queued in parts that memory has room for."""
        group_size, size = self.config.rl.group_size, self.config.reference_images // self.workers.size
        if size == len(inputs):
            return [self.ref_logprobs(inputs, ids)]
        starts = range(0, len(inputs), size)
        return [self.ref_logprobs(inputs[i : i + size], ids[i * group_size : (i + size) * group_size]) for i in starts]

    def _reward(
        self, index: int, images: np.ndarray, places: list[np.ndarray], completions: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of this worker's samples which ended, float32 [rows], and rewards float32 [rows, k]; then [images, k] of its
        greedy captions (none: empty). completions: ids and mask of the samples, ids and mask of the greedy ones."""
        own, group_size = np.concatenate(places), self.config.rl.group_size
        rows = (own[:, None] * group_size + np.arange(group_size)).reshape(-1)  # among all samples of the rollout
        samples = len(rows)
        if self.greedy:  # rewarded in the same call, with the random draws of their group's first sample
            rows = np.concatenate([rows, own * group_size])
        ids, mask = (np.concatenate([completions[place], completions[place + 2]]) for place in (0, 1))
        ended, rewards = self.rewards(index, rows, images[rows // group_size], ids, mask)
        return ended[:samples].astype(np.float32), rewards[:samples], rewards[samples:]

    def _statistics(self, rollout: Rollout, rewards: np.ndarray) -> dict[str, float]:
        """Compute the statistics that docs/metrics.md describes; rewards [B, G, k]."""
        total = moments(rollout.rewards)
        stats = {
            "rollout/reward_mean": total[0],
            "rollout/reward_std": total[1],
            "rollout/advantage_std": rollout.advantages.std(),
            "rollout/zero_spread_groups": zero_advantage_groups(rollout.advantages, self.config.rl.group_size),
            "rollout/length_mean": rollout.completion_mask.sum(1).mean(),
        }
        for number, name in enumerate(self.rewards.names):
            mean, std = moments(rewards[..., number])
            stats |= {f"rollout/reward_{name}_mean": mean, f"rollout/reward_{name}_std": std}
        return {name: value for name, value in stats.items() if not np.isnan(value)}  # no image had a question

    def _failed(self, index: int) -> float | None:
        """The share of the rollout's presentations, of all workers, that caprl got no answer to; None without caprl.

        Errors: RunStopped, on all workers, above caprl.max_failed.
        """
        if self.rewards.failures is None:
            return None
        failed, presented = self.workers.sum(self.rewards.failures)
        if failed > self.config.caprl.max_failed * presented:
            raise RunStopped(
                f"caprl got no answer to {failed:.0f} of {presented:.0f} questions in rollout {index + 1}, "
                f"caprl.max_failed={self.config.caprl.max_failed}: check the answering model; "
                f"{self.config.run_folder / 'checkpoints/last'} is saved; run the same command to resume"
            )
        return failed / max(presented, 1.0)  # none where no image of the rollout has a question


def rollout_images(rows: int, size: int, seed: int, index: int) -> np.ndarray:
    """Return the training images of rollout `index`, int64 [size]. Epochs are reshuffled; remainders are dropped."""
    per_epoch = rows // size
    epoch, place = divmod(index, per_epoch)
    return generator("data", seed, epoch).permutation(rows)[place * size : (place + 1) * size]
