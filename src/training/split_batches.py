"""Apply a function to all images of a split, in batches divided among the workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from src.data.dataset import padded_batches
from src.data.feature_source import FeatureSource
from src.data.images import ImageSource
from src.runtime.progress import Progress
from src.runtime.workers import Workers


@dataclass(frozen=True)
class SplitBatches:
    """A source of `images` images, in batches of `batch_images` over all workers; each worker takes its share."""

    source: ImageSource | FeatureSource
    images: int
    batch_images: int
    workers: Workers

    def map(self, description: str, function: Callable[[int, Tensor], Sequence[Tensor]]) -> list[np.ndarray]:
        """Return the outputs of `function` for all images in order, on every worker.

        function: takes the index of the first image and the inputs [B, ...]; each of its outputs has the same number of
        rows for every image. description: of the progress bar.
        """
        batches = padded_batches(self.images, self.workers.multiple(self.batch_images))
        shares = [
            self.workers.share(np.arange(batch * len(rows), (batch + 1) * len(rows)))
            for batch, rows in enumerate(batches)
        ]
        inputs = Progress(description, len(batches), "batch").over(
            self.source.batches([self.workers.share(batch) for batch in batches])
        )
        parts = [
            [output.asnumpy() for output in function(int(share[0]), Tensor(x))] for share, x in zip(shares, inputs)
        ]
        own = [np.concatenate(rows) for rows in zip(*parts)]
        padded = sum(map(len, batches))
        return [rows[: self.images * (len(rows) // padded)] for rows in self.workers.gather(own, len(batches))]
