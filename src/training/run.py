"""A run: its folder, its parts, what it goes on from, and how it ends."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from src import __version__
from src.compile_cache import GraphCache
from src.config import Config
from src.config_load import resolved
from src.data.dataset import Dataset, build_sources, build_tokenizer, load_dataset, padded_batches
from src.data.features import FeatureSource
from src.data.images import ImageSource
from src.data.tokenizer import Tokenizer, load_tokenizer
from src.decoding.sampler import GreedyDecoder
from src.environment import on_signals, start_time
from src.errors import InputError, RunStopped, Terminated, TimeLimit
from src.files import file_digest, whole_file
from src.models.captioner import Captioner, build_captioner
from src.progress import Progress, say
from src.rewards.cider import corpus_cider
from src.training.checkpoint import find_last, load_checkpoint, read_state, save_checkpoint
from src.training.metrics import MetricsWriter, open_metrics
from src.training.run_folder import COMPLETED, check_init
from src.training.start_warnings import say_before_training
from src.workers import Workers


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
    metrics: MetricsWriter | None
    graphs: GraphCache
    greedy: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    workers: Workers
    resumed: Path | None
    terminated: list[bool] = field(default_factory=list)

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
        captions, lengths, _ = decode_images(
            self.greedy, self.tokenizer, self.val_source, len(image_ids), size, self.workers, "validation"
        )
        if self.metrics is not None:
            self.metrics.write_captions(self.state["step"], captions)
        words = [" ".join(self.dataset.words.split(caption)) for caption in captions]
        score = corpus_cider(dict(zip(image_ids, words)), self.dataset.by_image_id("val"))
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

    def complete(self) -> None:
        """Mark the run as finished."""
        if self.workers.is_first:
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
    """Build all parts and load what the run goes on from: its own last checkpoint, or `init` (parameters only)."""
    with workers.first_alone():
        dataset = load_dataset(config)
    if dataset.skipped and workers.is_first:
        listing = folder / "skipped.txt"
        listing.write_text("".join(f"{skipped.file}\t{skipped.reason}\n" for skipped in dataset.skipped))
        print(f"{len(dataset.skipped)} images or captions skipped, listed in {listing}")
    if workers.is_first:
        say_before_training(config, dataset)
    with workers.first_alone():
        last = find_last(folder)
    images = len(dataset.records["train"])
    if config.stage != "ce" and config.grpo.rollout_images > images:
        raise InputError(
            f"grpo.rollout_images={config.grpo.rollout_images} must be at most {images}, the training images"
        )
    tokenizer = load_run_tokenizer(init) if init is not None else build_tokenizer(config, dataset)
    cached = not config.encoder.trainable
    checkpoint = None if init or last else config.encoder.checkpoint
    captioner = build_captioner(config, tokenizer.allowed, cached=cached, checkpoint=checkpoint)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_score": -1.0, "best_step": 0}
    if init is not None:
        state["init"] = file_digest(init)
    if last is not None:
        saved = read_state(last)
        check_init(folder, init, saved)
        state |= saved
        check_tokenizer(last, state, tokenizer)
        load_checkpoint(last, captioner)
    elif init is not None:
        check_tokenizer(init, load_checkpoint(init, captioner), tokenizer)
    if workers.is_first:
        tokenizer.save(folder / "tokenizer.json")
    graphs = graph_cache(config, tokenizer, workers, images)
    train_source, val_source = build_sources(config, dataset.records, ("train", "val"), captioner.encoder, workers)
    first_step = 0 if last is None else state["step"] + 1
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        tokenizer=tokenizer,
        captioner=captioner,
        train_source=train_source,
        val_source=val_source,
        state=state,
        metrics=open_metrics(config, dataset.records["val"], first_step) if workers.is_first else None,
        graphs=graphs,
        greedy=graphs.keep("greedy", GreedyDecoder(captioner, tokenizer.specials, config.eval.tokens)),
        workers=workers,
        resumed=last,
    )
    on_signals(lambda: run.terminated.append(True))
    return run


def graph_cache(config: Config, tokenizer: Tokenizer, workers: Workers, train_images: int = 0) -> GraphCache:
    """Where the graphs of a run are kept. train_images: the learning rate's schedule counts them."""
    settings = resolved(config)
    for key in (
        "seed",
        "output_root",
        "name",
        "device_id",
        "fresh",
        "stop_after_minutes",
        "log_every",
        "init_checkpoint",
    ):
        settings.pop(key, None)
    return GraphCache(
        config.cache_folder / "graphs",
        {"config": settings, "tokens": tokenizer.fingerprint, "images": train_images, "workers": workers.size},
    )


def load_run_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer.json of a checkpoint's own folder, or of the run that owns it."""
    own = checkpoint.resolve().parent / "tokenizer.json"
    return load_tokenizer(own if own.is_file() else own.parent.parent / own.name)


def check_tokenizer(path: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """InputError if the checkpoint's vocabulary is not the tokenizer's."""
    if state.get("tokenizer") != tokenizer.fingerprint:
        raise InputError(
            f"{path} was trained with another vocabulary than its tokenizer.json or this data has: restore it"
        )


def describe(run: Run, target: str) -> str:
    """One line for the start of a run."""
    config = run.config
    trained = sum(int(np.prod(parameter.shape)) for parameter in run.captioner.trained_parameters())
    images = ", ".join(f"{len(rows)} {split}" for split, rows in run.dataset.records.items())
    devices = target if run.workers.size == 1 else f"{run.workers.size} x {target}"
    encoder = "trained" if config.encoder.trainable else "frozen"
    return (
        f"{config.stage} in {run.folder} on {devices}: {images} images, encoder {encoder}, "
        f"{trained / 1e6:.1f} M trained parameters"
    )
