"""A rollout: groups sampled on the device, rewarded and given advantages on the host.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, k rewards.
"""

import time

import numpy as np
from mindspore import Tensor

from src.decoding.sampler import GroupSampler
from src.losses.cells import LogprobCell
from src.models.captioner.policy import Captioner
from src.rewards.completions import decode_completions
from src.rl.advantage import combined_advantages, total_rewards, zero_advantage_groups
from src.rl.rollout import Rollout, moments
from src.runtime.errors import RunStopped
from src.runtime.progress import Progress
from src.runtime.rng import permutation, uniforms
from src.training.run import Run


class RolloutCollector:
    """Samples, rewards and scores a rollout of `rollout_images` images in batches of `sample_images`."""

    def __init__(self, run: Run, reference: Captioner) -> None:
        assert run.rewards is not None
        self.run = run
        self.config = run.config
        self.rewards = run.rewards
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
        own_rewards, own_greedy = self._reward(index, images, places, completion_ids, mask, *greedy)
        failed = self._failed(index)
        rewarded_at = time.perf_counter()
        own = [completion_ids, mask, old_logprobs, ref_logprobs, own_rewards, *([own_greedy] if greedy else [])]
        completion_ids, mask, old_logprobs, ref_logprobs, rewards, *greedy_rewards = workers.gather(own, len(batches))
        rewards = rewards.reshape(len(images), grpo.group_size, -1)  # [B, G, k]
        weights = self.rewards.weights
        advantages = combined_advantages(rewards, weights, self.config.advantage, *greedy_rewards)
        rollout = Rollout(
            image_rows=images,
            completion_ids=completion_ids,
            completion_mask=mask,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs * mask,
            rewards=total_rewards(rewards, weights).astype(np.float32),
            advantages=advantages,
        )
        stats = self._statistics(rollout, rewards)
        if failed is not None:
            stats["rollout/caprl_failed"] = failed
        if greedy:
            stats["rollout/greedy_reward_mean"] = moments(greedy_rewards[0] @ weights)[0]
        return rollout, stats | {"time/rollout_s": sampled_at - started, "time/reward_s": rewarded_at - sampled_at}

    def _sample(self, index: int, images: np.ndarray, places: list[np.ndarray]) -> list[np.ndarray]:
        """This worker's completion_ids, mask and old_logprobs [rows, T], ids and mask of greedy captions [images, T]
        where the baseline is greedy, and ref_logprobs [rows, T]."""
        grpo, seed = self.config.grpo, self.config.seed
        parts = []
        bar = Progress(f"rollout {index + 1}", len(places), "batch")
        for own, inputs in zip(bar.over(places), self.run.train_source.batches([images[own] for own in places])):
            rows = len(own) * grpo.group_size
            draws = uniforms(seed, index, int(own[0]) * grpo.group_size, rows, grpo.tokens)
            inputs = Tensor(inputs)
            sampled = self.sampler(inputs, Tensor(draws.reshape(len(own), grpo.group_size, -1)))
            ref_logprobs = self.ref_logprobs(inputs, sampled[0])
            parts.append([output.asnumpy() for output in (*sampled, ref_logprobs)])
        return [np.concatenate(rows) for rows in zip(*parts)]

    def _reward(
        self,
        index: int,
        images: np.ndarray,
        places: list[np.ndarray],
        ids: np.ndarray,
        mask: np.ndarray,
        *greedy: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards float32 [rows, k] of this worker's samples, and [images, k] of its greedy captions (none: empty)."""
        own, group_size = np.concatenate(places), self.config.grpo.group_size
        rows = (own[:, None] * group_size + np.arange(group_size)).reshape(-1)  # among all samples of the rollout
        samples = len(rows)
        if greedy:  # rewarded in the same call, with the random draws of their group's first sample
            ids, mask = np.concatenate([ids, greedy[0]]), np.concatenate([mask, greedy[1]])
            rows = np.concatenate([rows, own * group_size])
        image_rows = images[rows // group_size]
        split = self.run.dataset.words.split
        rewards = self.rewards(decode_completions(self.run.tokenizer, index, rows, image_rows, ids, mask, split))
        return rewards[:samples], rewards[samples:]

    def _statistics(self, rollout: Rollout, rewards: np.ndarray) -> dict[str, float]:
        """What docs/metrics.md says of every rollout; rewards [B, G, k]."""
        ended = (rollout.completion_ids == self.run.tokenizer.eos_id).any(1)
        total = moments(rollout.rewards)
        stats = {
            "rollout/reward_mean": total[0],
            "rollout/reward_std": total[1],
            "rollout/advantage_std": rollout.advantages.std(),
            "rollout/zero_spread_groups": zero_advantage_groups(rollout.advantages, self.config.grpo.group_size),
            "rollout/length_mean": rollout.completion_mask.sum(1).mean(),
            "rollout/truncated": 1.0 - ended.mean(),
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
        failed, presented = self.run.workers.sum(self.rewards.failures)
        if failed > self.config.caprl.max_failed * presented:
            raise RunStopped(
                f"caprl got no answer to {failed:.0f} of {presented:.0f} questions of rollout {index + 1}, "
                f"caprl.max_failed={self.config.caprl.max_failed}: see to the answering model; "
                f"{self.run.folder / 'checkpoints/last'} is saved, the same command goes on"
            )
        return failed / max(presented, 1.0)  # none where no image of the rollout has a question


def rollout_images(rows: int, size: int, seed: int, index: int) -> np.ndarray:
    """Which training images rollout `index` takes, int64 [size]: epochs are shuffled anew, their rest is dropped."""
    per_epoch = rows // size
    epoch, place = divmod(index, per_epoch)
    return permutation("data", seed, (epoch,), rows)[place * size : (place + 1) * size]
