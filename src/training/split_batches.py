"""All images of a split in batches of one size, divided among the workers."""

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
    """source: of `images` images, in batches of `batch_images` over all workers, each of which takes its share."""

    source: ImageSource | FeatureSource
    images: int
    batch_images: int
    workers: Workers

    def map(self, description: str, function: Callable[[int, Tensor], Sequence[Tensor]]) -> list[np.ndarray]:
        """The outputs of a function for all images in order, on every worker.

        function: of the place of a share's first image and of its inputs; each output has as many rows for each image.
        description: of the progress shown.
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
