"""A run: its folder, its parts, what it goes on from, and how it ends."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from src import __version__
from src.config.load import resolved
from src.config.rules import check_sizes
from src.config.schema import Config
from src.data.dataset import Dataset, build_tokenizer, load_dataset, padded_batches
from src.data.features import FeatureSource
from src.data.images import ImageSource
from src.data.tokenizer import Tokenizer
from src.decoding.sampler import GreedyDecoder
from src.models.captioner.policy import Captioner, build_captioner
from src.models.checkpoint import check_tokenizer, load_checkpoint, load_run_tokenizer, read_state
from src.rewards.cider import corpus_cider
from src.rewards.mixture import Rewards
from src.runtime.compile_cache import GraphCache
from src.runtime.environment import on_signals, start_time
from src.runtime.errors import RunStopped, Terminated, TimeLimit
from src.runtime.files import file_digest, whole_file
from src.runtime.progress import Progress, say, warn
from src.runtime.workers import Workers
from src.training.answerer import build_answerer
from src.training.checkpoint import find_last, save_checkpoint
from src.training.features import build_sources
from src.training.metrics import MetricsWriter, open_metrics
from src.training.notices import list_skipped, say_before_training
from src.training.run_folder import COMPLETED, check_data, data_state, open_run_folder, saved_state
from src.training.watch import Watch

# Keys and sections that no graph holds a value of.
NOT_IN_GRAPHS: tuple[str, ...] = (
    "seed",
    "output_root",
    "name",
    "device_id",
    "fresh",
    "stop_after_minutes",
    "log_every",
    "select",
)
NOT_IN_GRAPHS += ("init_config", "init_checkpoint", "data", "demo", "tokenizer", "rewards", "cider", "caprl", "length")


@dataclass
class Run:
    """The parts of a stage. `state` is what a checkpoint keeps beside parameters: step, seconds (of sampling,
    rewards and updates), best_score and the like. `resumed` is the checkpoint that the run goes on from."""

    config: Config
    folder: Path
    dataset: Dataset
    tokenizer: Tokenizer
    captioner: Captioner
    train_source: ImageSource | FeatureSource
    val_source: ImageSource | FeatureSource
    state: dict[str, Any]
    rewards: Rewards | None  # of RL
    metrics: MetricsWriter | None
    graphs: GraphCache
    greedy: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    workers: Workers
    watch: Watch
    resumed: Path | None
    terminated: list[bool] = field(default_factory=list)
    began: tuple[int, str] = (0, "")  # step, and digest of the trained weights, where this process begins

    def save(self, name: str, optimizer_state: dict | None = None) -> None:
        """Write checkpoints/<name> with the present parameters and state; the first worker does."""
        if self.workers.is_first:
            made_by = {"stage": self.config.stage, "tokenizer": self.tokenizer.fingerprint, "version": __version__}
            save_checkpoint(self.folder / "checkpoints" / name, self.captioner, self.state | made_by, optimizer_state)

    def log(self, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl for the present step, with the seconds spent so far."""
        if self.metrics is not None:
            self.metrics.write(self.state["step"], values | {"time/total_s": self.state["seconds"]})

    def say(self, text: str) -> None:
        """Print a line beside the progress bar; the first worker does."""
        if self.workers.is_first:
            say(text)

    def validate(self) -> dict[str, float]:
        """Score greedy captions of the validation split by CIDEr; a better score than any before is kept as `best`."""
        image_ids = [record.image_id for record in self.dataset.records["val"]]
        size = self.config.eval.batch_images
        captions, lengths, ended = decode_images(
            self.greedy, self.tokenizer, self.val_source, len(image_ids), size, self.workers, "validation"
        )
        if self.metrics is not None:
            self.metrics.write_captions(self.state["step"], captions)
        words = [" ".join(self.dataset.words.split(caption)) for caption in captions]
        score = corpus_cider(dict(zip(image_ids, words)), self.dataset.by_image_id("val"))
        self.watch.validation(score, truncated=1 - ended.mean(), images=len(image_ids))
        if score > self.state["best_score"]:
            self.state.update(best_score=score, best_step=self.state["step"])
            self.save("best")
        return {"val/CIDEr": score, "val/length_mean": float(lengths.mean()), "val/distinct": len(set(captions))}

    def check_finite(self, values: np.ndarray) -> None:
        """Raise RunStopped where the loss or the gradient norm of a step, the first two of `values`, is not finite.

        With float16 the norm may overflow, which leaves the update out, while its scale, the last, can still fall.
        """
        overflow = self.config.precision == "float16" and np.isfinite(values[0]) and values[-1] > 1
        if not np.isfinite(values[:2]).all() and not overflow:
            last = self.folder / "checkpoints" / "last"
            step = self.state["step"] + 1
            raise RunStopped(f"the loss is not finite at step {step}; {last} is the last good one")

    def must_stop(self) -> bool:
        """Whether SIGTERM or Ctrl-C has arrived at any worker or the time is up: the same answer on all."""
        return self.workers.any(bool(self.terminated) or self._time_is_up())

    def _time_is_up(self) -> bool:
        minutes = self.config.stop_after_minutes
        return minutes > 0 and time.time() - start_time() > 60 * minutes

    def stop(self) -> None:
        """End the run, whose last checkpoint is saved."""
        terminated = self.workers.any(bool(self.terminated))  # also waits: msrun kills the others when one has ended
        rest = f"at step {self.state['step']}; {self.folder / 'checkpoints/last'} is saved, the same command goes on"
        if terminated:
            raise Terminated(f"ended by SIGTERM or Ctrl-C {rest}")
        raise TimeLimit(f"stop_after_minutes={self.config.stop_after_minutes:g} is reached {rest}")

    def digest(self) -> str:
        """SHA-256 of the trained weights, hexadecimal."""
        digest = hashlib.sha256()
        for parameter in self.captioner.trained_parameters():
            digest.update(parameter.asnumpy().tobytes())
        return digest.hexdigest()

    def complete(self) -> None:
        """Mark the run as finished."""
        step, weights = self.began
        if self.workers.is_first:
            if self.state["step"] > step:
                self.watch.finished(weights, self.digest())
            with whole_file(self.folder / COMPLETED) as partial:
                partial.write_text(json.dumps(self.state) + "\n")
        self.workers.wait()


def decode_images(
    decoder: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    tokenizer: Tokenizer,
    source: ImageSource | FeatureSource,
    images: int,
    batch_images: int,
    workers: Workers,
    description: str,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The caption that `decoder` (greedy or beams) gives each of all `images` of `source`, in order, on every worker.

    Also their lengths in tokens with the EOS, float [n], and whether they end in an EOS, bool [n].
    description: of the progress that is shown.
    """
    batches = [workers.share(batch) for batch in padded_batches(images, workers.multiple(batch_images))]
    inputs = Progress(description, len(batches), "batch").over(source.batches(batches))
    decoded = [[output.asnumpy() for output in decoder(Tensor(batch))[:2]] for batch in inputs]
    own = [np.concatenate(rows) for rows in zip(*decoded)]
    ids, mask = (rows[:images] for rows in workers.gather(own, len(batches)))
    return [tokenizer.decode(row) for row in ids], mask.sum(1), (ids == tokenizer.eos_id).any(1)


def start_run(config: Config, folder: Path, init: Path | None, workers: Workers) -> Run:
    """Build all parts and load what the run goes on from: its own last checkpoint, or `init` (parameters only).

    What can be wrong with the input is found before the run folder is opened, and so before fresh=true deletes a run.
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
    tokenizer = build_tokenizer(config, dataset) if start is None else load_run_tokenizer(start)
    images = len(dataset.records["train"])
    rewards = None
    if config.stage != "ce":
        check_sizes(config, images, tokenizer.vocab_size)
        answerer = partial(build_answerer, config.caprl, dataset.words.language)
        image_ids = [record.image_id for record in dataset.records["train"]]
        rewards = Rewards(config, dataset.ground_truths["train"], image_ids, answerer)
    cached = not config.encoder.trainable
    weights = last or init
    checkpoint = None if weights is not None else config.encoder.checkpoint
    captioner = build_captioner(config, tokenizer.allowed, cached=cached, checkpoint=checkpoint)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_score": -1.0, "best_step": 0}
    state["data"] = data_state(dataset.records)
    if init is not None:
        state["init"] = file_digest(init)
    state |= saved
    if weights is not None:
        check_tokenizer(weights, read_state(weights), tokenizer)
        load_checkpoint(weights, captioner)
    graphs = graph_cache(config, tokenizer, workers, images)
    train_source, val_source = build_sources(config, dataset.records, ("train", "val"), captioner.encoder, workers)
    if workers.is_first:
        open_run_folder(config)
        list_skipped(folder, dataset)
        tokenizer.save(folder / "tokenizer.json")
    first_step = 0 if last is None else state["step"] + 1
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        tokenizer=tokenizer,
        captioner=captioner,
        train_source=train_source,
        val_source=val_source,
        rewards=rewards,
        state=state,
        metrics=open_metrics(config, dataset.records["val"], first_step) if workers.is_first else None,
        graphs=graphs,
        greedy=graphs.keep("greedy", GreedyDecoder(captioner, tokenizer.specials, config.eval.tokens)),
        workers=workers,
        watch=Watch(config, warn if workers.is_first else None),
        resumed=last,
    )
    run.began = (state["step"], run.digest())
    flat = [caption for captions in dataset.ground_truths["train"] for caption in captions]
    run.watch.captions([tokenizer.encode(caption) for caption in flat[:: -(-len(flat) // 10_000)]], tokenizer.unk_id)
    on_signals(lambda: run.terminated.append(True))
    return run


def graph_cache(config: Config, tokenizer: Tokenizer, workers: Workers, train_images: int = 0) -> GraphCache:
    """Where the graphs of a run are kept: in the cache folder, or where CAPTIONER_GRAPHS says.

    train_images: the learning rate's schedule counts them.
    """
    settings = {key: value for key, value in resolved(config).items() if key not in NOT_IN_GRAPHS}
    settings |= {"image_size": config.data.image_size}
    return GraphCache(
        Path(os.environ.get("CAPTIONER_GRAPHS") or config.cache_folder / "graphs"),
        {"config": settings, "tokens": tokenizer.fingerprint, "images": train_images, "workers": workers.size},
    )


def describe(run: Run, target: str) -> str:
    """One line for the start of a run."""
    config = run.config
    trained = sum(int(np.prod(parameter.shape)) for parameter in run.captioner.trained_parameters())
    images = ", ".join(f"{len(rows)} {split}" for split, rows in run.dataset.records.items())
    devices = target if run.workers.size == 1 else f"{run.workers.size} x {target}"
    encoder = "trained" if config.encoder.trainable else "frozen"
    init = f", weights and vocabulary of {config.init_checkpoint}" if config.init_checkpoint is not None else ""
    return (
        f"{config.stage} in {run.folder} on {devices}: {images} images, encoder {encoder}, "
        f"{trained / 1e6:.1f} M trained parameters{init}"
    )
