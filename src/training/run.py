"""A run: its folder, its parts, what it goes on from, and how it ends."""

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mindspore import Tensor

from src.compile_cache import GraphCache
from src.config import Config
from src.config_load import differing_keys, load_config, resolved, stage_overrides, write_config
from src.data.dataset import Dataset, build_source, build_tokenizer, load_dataset, padded_batches
from src.data.features import FeatureSource
from src.data.images import ImageSource
from src.data.tokenizer import Tokenizer, load_tokenizer
from src.decoding.sampler import GreedyDecoder
from src.errors import InputError, Terminated
from src.files import file_digest, whole_file
from src.models.captioner import Captioner, build_captioner
from src.rewards.cider import corpus_cider
from src.training.checkpoint import find_last, load_checkpoint, read_state, save_checkpoint
from src.training.metrics import MetricsWriter

COMPLETED = "completed"  # a file of this name marks a finished run
FIRST = "first"  # the checkpoint after CE's first epoch, kept where select is original


@dataclass
class Run:
    """The parts of a stage. `state` is what a checkpoint keeps beside parameters: step, seconds (of sampling,
    rewards and updates), best_score and the like."""

    config: Config
    folder: Path
    dataset: Dataset
    tokenizer: Tokenizer
    captioner: Captioner
    train_source: ImageSource | FeatureSource
    val_source: ImageSource | FeatureSource
    state: dict[str, Any]
    metrics: MetricsWriter
    graphs: GraphCache
    greedy: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    terminated: list[int] = field(default_factory=list)

    def save(self, name: str, optimizer_state: dict | None = None) -> Path:
        """Write checkpoints/<name> with the present parameters and state."""
        path = self.folder / "checkpoints" / name
        state = {**self.state, "stage": self.config.stage, "tokenizer": self.tokenizer.fingerprint}
        save_checkpoint(path, self.captioner, state, optimizer_state)
        return path

    def log(self, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl for the present step, with the seconds spent so far."""
        self.metrics.write(self.state["step"], values | {"time/total_s": self.state["seconds"]})

    def validate(self) -> dict[str, float]:
        """Score greedy captions of the validation split by CIDEr; a better score than any before is kept as `best`."""
        image_ids = [record.image_id for record in self.dataset.records["val"]]
        captions, lengths, _ = decode_images(
            self.greedy, self.tokenizer, self.val_source, len(image_ids), self.config.eval.batch_images
        )
        score = corpus_cider(dict(zip(image_ids, captions)), self.dataset.by_image_id("val"))
        if score > self.state["best_score"]:
            self.state.update(best_score=score, best_step=self.state["step"])
            self.save("best")
        return {"val/CIDEr": score, "val/length_mean": float(lengths.mean()), "val/distinct": len(set(captions))}

    def check_terminated(self, saved: Path) -> None:
        """Raise Terminated if SIGTERM has arrived; `saved` is the checkpoint to name."""
        if self.terminated:
            raise Terminated(f"SIGTERM at step {self.state['step']}; {saved} is saved, the same command goes on")

    def complete(self) -> None:
        """Mark the run as finished."""
        with whole_file(self.folder / COMPLETED) as partial:
            partial.write_text(json.dumps(self.state) + "\n")


def decode_images(
    decoder: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    tokenizer: Tokenizer,
    source: ImageSource | FeatureSource,
    images: int,
    batch_images: int,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The caption that `decoder` (greedy or beams) gives each of all `images` of `source`, in order.

    Also their lengths in tokens with the EOS, float [n], and whether they end in an EOS, bool [n].
    """
    captions: list[str] = []
    lengths, ended = [], []
    for inputs in source.batches(padded_batches(images, batch_images)):
        ids, mask, _ = (output.asnumpy() for output in decoder(Tensor(inputs)))
        captions += [tokenizer.decode(row) for row in ids]
        lengths.append(mask.sum(1))
        ended.append((ids == tokenizer.eos_id).any(1))
    return captions[:images], np.concatenate(lengths)[:images], np.concatenate(ended)[:images]


def is_complete(folder: Path, init: Path | None) -> bool:
    """Whether the run in `folder` has finished. Errors: InputError where it started from another file than `init`."""
    if not (folder / COMPLETED).is_file():
        return False
    check_init(folder, init, json.loads((folder / COMPLETED).read_text()))
    return True


def check_init(folder: Path, init: Path | None, state: dict[str, Any]) -> None:
    """InputError where the run in `folder` started from another file than `init`."""
    if init is not None and state.get("init", "") != file_digest(init):
        raise InputError(
            f"the run in {folder} started from other weights than {init} holds now: fresh=true starts over"
        )


def init_checkpoint(config: Config, config_file: Path, overrides: Sequence[str]) -> Path:
    """The CE checkpoint that RL starts from: `init_checkpoint`, or one of the run of `init_config`, as `select` says.

    Errors: InputError where there is none.
    """
    if config.init_checkpoint is not None:
        path = Path(config.init_checkpoint)
        mend = "check init_checkpoint"
    else:
        ce_file = config_file.parent / config.init_config
        name = "best" if config.select == "best" else FIRST
        path = load_config(ce_file, stage_overrides(overrides)).run_folder / "checkpoints" / name
        mend = f"train with {ce_file} first, or set init_checkpoint"
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path} to start from: {mend}")
    return path


def open_run_folder(config: Config) -> Path:
    """Make the run folder, or check that the run in it had the same configuration.

    Errors: InputError where it cannot be written, or naming the keys that differ.
    """
    folder = config.run_folder
    try:
        if config.fresh and folder.is_dir():
            if any(folder.iterdir()) and not (folder / "config.yaml").is_file():
                raise InputError(f"{folder} is no run of this project, fresh=true does not delete it: choose name=...")
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        config_file = folder / "config.yaml"
        if config_file.exists():
            differing = differing_keys(_read_config(config_file), resolved(config))
            if differing:
                raise InputError(
                    f"{folder} holds a run with other values of {', '.join(differing)}; "
                    "give another name=..., or fresh=true to start over"
                )
        write_config(config, config_file)
    except OSError as error:
        raise InputError(f"cannot write the run folder {folder}: {error}; choose another output_root") from None
    return folder


def _read_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise InputError(f"{path} is damaged: delete it to go on with this configuration, or fresh=true starts over")
    return tree


def start_run(config: Config, folder: Path, init: Path | None) -> Run:
    """Build all parts and load what the run goes on from: its own last checkpoint, or `init` (parameters only)."""
    dataset = load_dataset(config)
    if dataset.skipped:
        listing = folder / "skipped.txt"
        listing.write_text("".join(f"{skipped.file}\t{skipped.reason}\n" for skipped in dataset.skipped))
        print(f"{len(dataset.skipped)} images or captions skipped, listed in {listing}")
    last = find_last(folder)
    tokenizer = load_run_tokenizer(init) if init is not None else build_tokenizer(config, dataset)
    cached = not config.encoder.trainable
    checkpoint = None if init or last else config.encoder.checkpoint
    captioner = build_captioner(config, tokenizer.allowed, cached=cached, checkpoint=checkpoint)
    state = {"step": 0, "seconds": 0.0, "best_score": -1.0, "best_step": 0}
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
    tokenizer.save(folder / "tokenizer.json")
    graphs = graph_cache(config, tokenizer, len(dataset.records["train"]))
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        tokenizer=tokenizer,
        captioner=captioner,
        train_source=build_source(config, dataset.records["train"], captioner.encoder),
        val_source=build_source(config, dataset.records["val"], captioner.encoder),
        state=state,
        metrics=MetricsWriter(folder, config.stage, state["step"]),
        graphs=graphs,
        greedy=graphs.keep("greedy", GreedyDecoder(captioner, tokenizer.specials, config.eval.tokens)),
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: run.terminated.append(signum))
    return run


def graph_cache(config: Config, tokenizer: Tokenizer, train_images: int = 0) -> GraphCache:
    """Where the graphs of a run are kept. train_images: the learning rate's schedule counts them."""
    settings = resolved(config)
    for key in ("seed", "output_root", "name", "fresh", "log_every", "init_checkpoint"):
        settings.pop(key, None)
    return GraphCache(
        config.cache_folder / "graphs", {"config": settings, "tokens": tokenizer.fingerprint, "images": train_images}
    )


def load_run_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer.json of the run that owns a checkpoint, or of the checkpoint's own folder."""
    folders = (checkpoint.resolve().parent.parent, checkpoint.resolve().parent)
    return load_tokenizer(next((f for f in folders if (f / "tokenizer.json").is_file()), folders[0]) / "tokenizer.json")


def check_tokenizer(path: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """InputError if the checkpoint's vocabulary is not the tokenizer's."""
    if state.get("tokenizer") != tokenizer.fingerprint:
        raise InputError(
            f"{path} was trained with another vocabulary than its tokenizer.json or this data has: restore it"
        )


def describe(config: Config, target: str, captioner: Captioner, dataset: Dataset) -> str:
    """One line for the start of a run."""
    trained = sum(int(np.prod(parameter.shape)) for parameter in captioner.trained_parameters())
    images = ", ".join(f"{len(rows)} {split}" for split, rows in dataset.records.items())
    encoder = "trained" if config.encoder.trainable else "frozen"
    return (
        f"{config.stage} in {config.run_folder} on {target}: {images} images, encoder {encoder}, "
        f"{trained / 1e6:.1f} M trained parameters"
    )
