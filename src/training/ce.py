"""The cross-entropy objective: all captions of an image share one encoding.

Letters: B images, K captions per image, M = B*K rows (row = b*K + k), T tokens, D width.
"""

import time
from collections.abc import Iterator

import numpy as np

from src.losses.cross_entropy import CELossCell
from src.losses.tokens import token_weights
from src.runtime.rng import generator, keep_masks
from src.training.loop import Batch
from src.training.run import Run


class CaptionTargets:
    """Target tokens of all training captions; selects K captions per image and epoch."""

    def __init__(self, run: Run) -> None:
        truths = run.dataset.targets("train")
        config = run.config.ce
        flat = [caption for captions in truths for caption in captions]
        self.ids, self.mask, self.cut = run.tokenizer.encode_targets(flat, config.tokens)
        self.first = np.cumsum([0, *map(len, truths)])
        self.captions_per_image = config.captions_per_image
        self.seed = run.config.seed

    def batch(self, images: np.ndarray, real: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 and mask float32, each [M, T]; the mask is 0 for padding, the images from `real` on."""
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


class CrossEntropy:
    """The objective of stage ce (see Objective in src/training/loop.py). A unit is an epoch."""

    label, unit = "CE", "epoch"
    validates_first = False
    resumes_within_unit = True

    def __init__(self, run: Run) -> None:
        self.run, self.settings = run, run.config.ce
        self.targets = CaptionTargets(run)
        self.images = len(run.dataset.records["train"])
        self.units = self.settings.epochs
        self.updates = -(-self.images // self.settings.batch_images)
        self.save_steps = self.settings.save_steps
        self.loss_cell = CELossCell(run.policy, self.settings.label_smoothing)
        if self.targets.cut:
            cut, limit = f"{self.targets.cut} of {len(self.targets.ids)} captions", f"ce.tokens={self.settings.tokens}"
            run.say(f"{cut} are longer than {limit} and were cut")

    def ends_before(self, epoch: int) -> str | None:
        """Return why training ends before `epoch`: none of the last ce.patience validations improved. Else None."""
        patience, state = self.settings.patience, self.run.state
        if not out_of_patience(state.step, state.best_step, patience * self.run.config.eval.every * self.updates):
            return None
        return f"CE ends after epoch {epoch}: none of the last {patience} validations was better (ce.patience)"

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield this worker's share of each batch of an epoch, starting with update `first`.

        The last batch is padded with masked images. Weights count the tokens of the whole batch.
        """
        size, share, seed = self.settings.batch_images, self.run.workers.share, self.run.config.seed
        order = generator("data", seed, epoch).permutation(self.images)
        places = np.minimum(np.arange(self.updates * size), len(order) - 1).reshape(-1, size)[first:]
        batches = [order[rows] for rows in places]
        for number, inputs in enumerate(self.run.train_source.batches(list(map(share, batches))), first):
            started = time.perf_counter()
            ids, mask = self.targets.batch(batches[number - first], min(size, len(order) - number * size), epoch)
            ids, weights = share(ids), share(token_weights(mask, "token"))
            arrays = (inputs, ids, weights, *self._dropout(epoch * self.updates + number, *ids.shape))
            yield Batch(
                arrays, time.perf_counter() - started, may_stop=number > first
            )  # a run makes one update at least

    def _dropout(self, step: int, rows: int, tokens: int) -> list[np.ndarray]:
        """Return dropout masks bool [M, T, D] for this worker's rows, one for each dropout site of the policy."""
        rates = np.array(self.run.policy.dropout_sites)
        if not len(rates):
            return []
        shape = (len(rates), tokens, self.run.policy.width)
        first_row = self.run.workers.rank * rows
        keep = keep_masks(self.run.config.seed, step, first_row, rows, shape, rates.reshape(-1, 1, 1))
        return [np.ascontiguousarray(keep[:, site]) for site in range(len(rates))]

    def describe(self, stats: dict[str, float]) -> str:
        """Summarise the loss."""
        return f"loss {stats['loss']:.3f}"


def out_of_patience(step: int, best_step: int, steps: int) -> bool:
    """Return whether the last `steps` updates brought no better validation; never if `steps` is 0."""
    return steps > 0 and step - best_step >= steps
