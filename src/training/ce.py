"""Stage 1: cross-entropy on all captions of an image with one encoding.

Letters: B images, K captions per image, M = B*K rows (row = b*K + k), T tokens.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from src.losses.cells import CELossCell
from src.losses.grpo import token_weights
from src.models.checkpoint import load_checkpoint
from src.runtime.progress import Progress
from src.runtime.rng import generator, keep_masks, permutation
from src.training.checkpoint import optimizer_parameters
from src.training.optim import build_optimizer, learning_rates
from src.training.run import Run
from src.training.run_folder import FIRST
from src.training.step import build_loss_scale, build_step


class CaptionTargets:
    """Target tokens of all training captions, and the choice of K of them per image and epoch."""

    def __init__(self, run: Run) -> None:
        truths = run.dataset.ground_truths["train"]
        config = run.config.ce
        flat = [caption for captions in truths for caption in captions]
        self.ids, self.mask, self.cut = run.tokenizer.encode_targets(flat, config.tokens)
        self.first = np.cumsum([0, *map(len, truths)])
        self.captions_per_image = config.captions_per_image
        self.seed = run.config.seed

    def batch(self, images: np.ndarray, real: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 and mask float32, each [M, T]; all 0 in the mask for images from `real` on, which are padding."""
        k = self.captions_per_image
        ids = np.zeros((len(images), k, self.ids.shape[1]), np.int32)
        mask = np.zeros(ids.shape, np.float32)
        for place, image in enumerate(images[:real]):
            captions = np.arange(self.first[image], self.first[image + 1])
            if len(captions) > k:
                captions = generator("captions", self.seed, epoch, int(image)).choice(captions, k, replace=False)
            ids[place, : len(captions)] = self.ids[captions]
            mask[place, : len(captions)] = self.mask[captions]
        return ids.reshape(-1, ids.shape[2]), mask.reshape(-1, ids.shape[2])


def run_ce(run: Run) -> None:
    """Train from the state of `run` until ce.patience or ce.epochs ends, validating after every `eval.every` epochs."""
    config = run.config
    ce = config.ce
    targets = CaptionTargets(run)
    if targets.cut:
        run.say(f"{targets.cut} of {len(targets.ids)} captions are longer than ce.tokens={ce.tokens} and were cut")
    steps_per_epoch = -(-len(run.dataset.records["train"]) // ce.batch_images)
    total_steps = ce.epochs * steps_per_epoch
    rates = learning_rates(ce.optimizer, total_steps)
    optimizer = build_optimizer(run.captioner.trained_parameters(), ce.optimizer, rates)
    loss_scale = build_loss_scale(config.precision)
    optimizer_state = optimizer_parameters(optimizer, run.captioner, loss_scale)
    if run.resumed is not None:
        load_checkpoint(run.resumed, run.captioner, optimizer_state)
    run.workers.broadcast([*run.captioner.get_parameters(), *optimizer_state.values()])
    if run.resumed is None:
        run.save("last", optimizer_state)
    loss_cell = CELossCell(run.captioner, run.tokenizer.bos_id, run.tokenizer.allowed, ce.label_smoothing)
    take_step = build_step(
        loss_cell, optimizer, loss_scale, ce.optimizer.grad_clip, ce.micro_batches, run.workers.size, run.graphs.keep
    )
    bar = Progress("CE", total_steps, "step", start=run.state["step"])
    for epoch in range(run.state["step"] // steps_per_epoch, ce.epochs):
        if out_of_patience(run.state, config.eval.every * steps_per_epoch, ce.patience):
            run.say(f"CE ends after epoch {epoch}: none of the last {ce.patience} validations was better (ce.patience)")
            break
        first = run.state["step"] - epoch * steps_per_epoch
        for inputs, ids, weights in _epoch_batches(run, targets, epoch, first):
            started = time.perf_counter()
            keep = _dropout(run, len(ids), ids.shape[1])
            values = take_step(inputs, ids, weights, *keep)
            run.check_finite(values)
            seconds = time.perf_counter() - started
            run.state["seconds"] += seconds
            run.state["step"] += 1
            step = run.state["step"]
            if step % config.log_every == 0:
                names = ("train/loss", "train/grad_norm", "train/token_accuracy", "train/loss_scale")
                logged = dict(zip(names, values)) | {"time/update_s": seconds}
                logged["train/lr"] = rates[step - 1]
                run.log(logged)
            bar.update(note=f"loss {values[0]:.3f}")
            ended = step % steps_per_epoch == 0  # then validation comes first, so that a resumed run does not miss it
            if not ended:
                stopping = run.must_stop()
                if stopping or (ce.save_steps and step % ce.save_steps == 0):
                    run.save("last", optimizer_state)
                if stopping:
                    run.stop()
        if (epoch + 1) % config.eval.every == 0 or epoch + 1 == ce.epochs:
            scores = run.validate()
            run.log(scores)
            run.say(
                f"CE epoch {epoch + 1}/{ce.epochs}: loss {values[0]:.3f}, val CIDEr {100 * scores['val/CIDEr']:.1f}"
            )
        if config.select == "original" and epoch == 0:
            run.save(FIRST)
        run.save("last", optimizer_state)
        if run.must_stop():
            run.stop()
    bar.close()


def out_of_patience(state: dict[str, Any], validation_steps: int, patience: int) -> bool:
    """Whether the last `patience` validations, one every `validation_steps` steps, all missed the best; never for 0."""
    return patience > 0 and state["step"] - state["best_step"] >= patience * validation_steps


def _epoch_batches(run: Run, targets: CaptionTargets, epoch: int, first: int) -> Iterator[tuple[np.ndarray, ...]]:
    """This worker's inputs, ids and token weights of each step of an epoch from step `first` on.

    The last batch is padded with masked images. Weights count the tokens of the whole batch.
    """
    size, share = run.config.ce.batch_images, run.workers.share
    order = permutation("data", run.config.seed, (epoch,), len(run.dataset.records["train"]))
    places = np.minimum(np.arange(-(-len(order) // size) * size), len(order) - 1).reshape(-1, size)[first:]
    batches = [order[rows] for rows in places]
    for offset, (images, inputs) in enumerate(zip(batches, run.train_source.batches(list(map(share, batches))))):
        real = min(size, len(order) - (first + offset) * size)
        ids, mask = targets.batch(images, real, epoch)
        yield inputs, share(ids), share(token_weights(mask, "token"))


def _dropout(run: Run, rows: int, tokens: int) -> list[np.ndarray]:
    """Dropout masks bool [M, T, D] of this worker's rows, one for each site of the decoder; none where rates are 0."""
    decoder = run.captioner.decoder
    rates = np.array(decoder.dropout_rates)
    if not rates.any():
        return []
    shape = (len(rates), tokens, decoder.width)
    first_row = run.workers.rank * rows
    keep = keep_masks(run.config.seed, run.state["step"], first_row, rows, shape, rates.reshape(-1, 1, 1))
    return [np.ascontiguousarray(keep[:, site]) for site in range(len(rates))]
