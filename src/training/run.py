"""A run: its folder, its parts, what it starts or resumes from, and how it ends."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor

from src import __version__
from src.config.rules import check_sizes
from src.config.schema import Config
from src.data.dataset import Dataset, build_tokenizer, load_dataset
from src.data.feature_source import FeatureSource
from src.data.images import ImageSource
from src.data.tokenizer import Tokenizer, decode_completions
from src.decoding.generation import Outputs, compile_generation
from src.decoding.sampler import GreedyDecoder
from src.models.build import build_policy
from src.models.checkpoint import check_tokenizer, load_checkpoint, load_run_tokenizer, read_state
from src.models.policy import Policy
from src.rewards.cider import corpus_cider
from src.rewards.mixture import Rewards, reward_signature
from src.runtime.compile_cache import GraphCache
from src.runtime.environment import on_signals, start_time
from src.runtime.errors import RunStopped, Terminated, TimeLimit
from src.runtime.files import file_digest, whole_file
from src.runtime.progress import say, warn
from src.runtime.workers import Workers
from src.training.answerer import build_answerer, read_questions
from src.training.checkpoint import find_last, save_checkpoint
from src.training.events import MetricsWriter, open_metrics
from src.training.graphs import graph_cache
from src.training.notices import list_skipped, say_before_training
from src.training.run_folder import COMPLETED, check_data, data_state, open_run_folder, saved_state
from src.training.sources import build_sources
from src.training.split_batches import SplitBatches
from src.training.watch import TrainingWatch


@dataclass
class TrainingState:
    """The state that a checkpoint stores beside the parameters.

    step: number of updates; seconds: spent on sampling, rewards and updates; best_score: the best validation CIDEr, at
    best_step; data: identifies the splits (data_state); init: digest of the checkpoint that the run started from;
    rewards: `reward_signature` of RL.
    """

    step: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    data: dict[str, dict[str, Any]] | None = None
    init: str | None = None
    rewards: str | None = None

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "TrainingState":
        """Return the state of a checkpoint, without the fields that only describe its origin."""
        return cls(**{name: saved[name] for name in (entry.name for entry in fields(cls)) if name in saved})

    def to_save(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Run:
    """The parts of a stage. resumed: the checkpoint that the run resumes from. optimizer_state: saved with `last`."""

    config: Config
    folder: Path
    dataset: Dataset
    tokenizer: Tokenizer
    policy: Policy
    reference: Policy | None  # of RL
    train_source: ImageSource | FeatureSource
    val_batches: SplitBatches
    state: TrainingState
    rewards: Rewards | None  # of RL
    metrics: MetricsWriter | None
    graphs: GraphCache
    greedy: Callable[[Tensor], Outputs]
    workers: Workers
    watch: TrainingWatch
    resumed: Path | None
    optimizer_state: dict[str, Parameter] = field(default_factory=dict)
    terminated: list[bool] = field(default_factory=list)
    began: tuple[int, str] = (0, "")  # step, and digest of the trained weights, where this process begins

    def save(self, name: str) -> None:
        """Write checkpoints/<name> with the present parameters and state, on the first worker."""
        if self.workers.is_first:
            made_by = {"stage": self.config.stage, "tokenizer": self.tokenizer.fingerprint, "version": __version__}
            optimizer_state = self.optimizer_state if name == "last" else None
            state = self.state.to_save() | made_by
            save_checkpoint(self.folder / "checkpoints" / name, self.policy, state, optimizer_state)

    def log(self, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl for the present step, with the seconds spent so far."""
        if self.metrics is not None:
            self.metrics.write(self.state.step, values | {"time/total_s": self.state.seconds})

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on the first worker."""
        if self.workers.is_first:
            say(text)

    def validate(self) -> dict[str, float]:
        """Score greedy captions of the validation split by CIDEr; save the weights as `best` if the score improved."""
        image_ids = [record.image_id for record in self.dataset.records["val"]]
        ids, mask = self.val_batches.map("validation", lambda _, inputs: self.greedy(inputs)[:2])
        captions, ended = decode_completions(self.tokenizer, self.policy.token_ids.eos, ids, mask)
        if self.metrics is not None:
            self.metrics.write_captions(self.state.step, captions)
        words = [" ".join(words) for words in self.dataset.words.split_all(captions)]
        score = corpus_cider(dict(zip(image_ids, words)), self.dataset.by_image_id("val"))
        self.watch.validation(score, truncated=1 - ended.mean(), images=len(image_ids))
        if score > self.state.best_score:
            self.state.best_score, self.state.best_step = score, self.state.step
            self.save("best")
        return {"val/CIDEr": score, "val/length_mean": float(mask.sum(1).mean()), "val/distinct": len(set(captions))}

    def check_finite(self, stats: dict[str, float]) -> None:
        """Raise RunStopped where the loss or the gradient norm of a step is not finite.

        With float16 the norm may overflow, which leaves the update out, while the loss scale can still fall.
        """
        overflow = np.isfinite(stats["loss"]) and stats.get("loss_scale", 0.0) > 1
        if not np.isfinite([stats["loss"], stats["grad_norm"]]).all() and not overflow:
            last = self.folder / "checkpoints" / "last"
            step = self.state.step + 1
            raise RunStopped(f"the loss is not finite at step {step}; the last good checkpoint is {last}")

    def must_stop(self) -> bool:
        """Whether SIGTERM or Ctrl-C has arrived at any worker or the time is up: the same answer on all."""
        return self.workers.any(bool(self.terminated) or self._time_is_up())

    def _time_is_up(self) -> bool:
        minutes = self.config.stop_after_minutes
        return minutes > 0 and time.time() - start_time() > 60 * minutes

    def stop(self) -> None:
        """End the run, whose last checkpoint is saved."""
        terminated = self.workers.any(bool(self.terminated))  # also waits: msrun kills the others when one has ended
        rest = f"at step {self.state.step}; {self.folder / 'checkpoints/last'} is saved; run the same command to resume"
        if terminated:
            raise Terminated(f"ended by SIGTERM or Ctrl-C {rest}")
        raise TimeLimit(f"stop_after_minutes={self.config.stop_after_minutes:g} is reached {rest}")

    def digest(self) -> str:
        """SHA-256 of the trained weights, hexadecimal."""
        digest = hashlib.sha256()
        for parameter in self.policy.trained_parameters():
            digest.update(parameter.asnumpy().tobytes())
        return digest.hexdigest()

    def complete(self) -> None:
        """Mark the run as finished."""
        step, weights = self.began
        if self.workers.is_first:
            if self.state.step > step:
                self.watch.finished(weights, self.digest())
            with whole_file(self.folder / COMPLETED) as partial:
                partial.write_text(json.dumps(self.state.to_save()) + "\n")
        self.workers.wait()


def start_run(config: Config, folder: Path, init: Path | None, workers: Workers) -> Run:
    """Build all parts and load what the run resumes from, its own last checkpoint, or `init` (parameters only).

    Wrong input is found before the run folder is opened, and so before fresh=true deletes a run.
    """
    with workers.first_alone():
        dataset = load_dataset(config)
    if workers.is_first:
        say_before_training(config, dataset)
    with workers.first_alone():
        last = None if config.fresh or saved_state(folder) is None else find_last(folder)
    saved = {} if last is None else read_state(last)
    check_data(config, dataset.records, saved)
    # CE that began from a checkpoint has its vocabulary, also where init_checkpoint is not given again.
    start = init or (last if "init" in saved else None)
    tokenizer = build_tokenizer(config, dataset) if start is None else load_run_tokenizer(start, config)
    images = len(dataset.records["train"])
    if config.stage != "ce":
        check_sizes(config, images, tokenizer.vocab_size)
        if config.rewards.caprl:
            read_questions(config, "train")
    policy, reference = _load_policies(config, tokenizer, init, last)
    rewards = None if config.stage == "ce" else _build_rewards(config, dataset, tokenizer, policy)
    state = TrainingState(data=data_state(dataset.records), init=None if init is None else file_digest(init))
    state.rewards = None if config.stage == "ce" else reward_signature(config)
    if last is not None:
        state = TrainingState.from_saved(state.to_save() | saved)
    graphs = graph_cache(config, tokenizer, workers, images)
    train_source, val_source = build_sources(config, dataset.records, ("train", "val"), policy.encoder, workers)
    if workers.is_first:
        open_run_folder(config)
        list_skipped(folder, dataset)
        tokenizer.save(folder / "tokenizer.json")
    validation = dataset.records["val"]
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        tokenizer=tokenizer,
        policy=policy,
        reference=reference,
        train_source=train_source,
        val_batches=SplitBatches(val_source, len(validation), config.eval.batch_images, workers),
        state=state,
        rewards=rewards,
        metrics=open_metrics(config, validation, 0 if last is None else state.step + 1) if workers.is_first else None,
        graphs=graphs,
        greedy=compile_generation("greedy", GreedyDecoder(policy, config.eval.tokens), graphs.compile),
        workers=workers,
        watch=TrainingWatch(config, warn if workers.is_first else None),
        resumed=last,
    )
    run.began = (state.step, run.digest())
    flat = [caption for captions in dataset.targets("train") for caption in captions]
    run.watch.captions([tokenizer.encode(caption) for caption in flat[:: -(-len(flat) // 10_000)]], tokenizer.unk_id)
    on_signals(lambda: run.terminated.append(True))
    return run


def _load_policies(
    config: Config, tokenizer: Tokenizer, init: Path | None, last: Path | None
) -> tuple[Policy, Policy | None]:
    """Return the policy, with the weights of `last` or else `init`, and for RL the reference with those of `init`."""
    fresh, cached = init is None and last is None, not config.encoder.trainable
    # Adapters need their base, and RL without CE its reference, whatever is loaded afterwards.
    base = config.lora.rank > 0 or (config.stage != "ce" and init is None)
    policy = build_policy(config, tokenizer.token_ids, cached=cached, load=fresh or base)
    reference = policy.reference() if config.stage != "ce" and init is None else None
    for weights in filter(None, (init, last)):
        check_tokenizer(weights, read_state(weights), tokenizer)
        load_checkpoint(weights, policy)
        if weights is init and config.stage != "ce":
            reference = policy.reference()
    return policy, reference


def _build_rewards(config: Config, dataset: Dataset, tokenizer: Tokenizer, policy: Policy) -> Rewards:
    decode = partial(decode_completions, tokenizer, policy.token_ids.eos)
    answerer = partial(build_answerer, config.caprl, dataset.words.language)
    return Rewards(config, dataset.by_image_id("train"), decode, dataset.words.split_all, answerer)


def describe(run: Run, target: str) -> str:
    """One line for the start of a run."""
    config = run.config
    trained = sum(int(np.prod(parameter.shape)) for parameter in run.policy.trained_parameters())
    images = ", ".join(f"{len(rows)} {split}" for split, rows in run.dataset.records.items())
    devices = target if run.workers.size == 1 else f"{run.workers.size} x {target}"
    encoder = "trained" if config.encoder.trainable else "frozen"
    init = f", weights and vocabulary of {config.init_checkpoint}" if config.init_checkpoint is not None else ""
    return (
        f"{config.stage} in {run.folder} on {devices}: {images} images, encoder {encoder}, "
        f"{trained / 1e6:.1f} M trained parameters{init}"
    )
