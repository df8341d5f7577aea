"""Export the captioner as one MindIR graph from pixels to token ids, and compare its captions with the original's.

Encoder and decoder share one graph: a server makes one call, and the features (1.6 MB per image for ResNet-50) stay on
the device.

Letters: B images, H image side, T tokens.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src.decoding.sampler import GreedyDecoder
from src.runtime.errors import InputError

Outputs = tuple[np.ndarray, np.ndarray]  # ids int32 [B, T], PAD after the EOS; lengths int32 [B], with the EOS


class ExportedCaptioner(nn.Cell):
    """Maps preprocessed pixels float32 [B, 3, H, H] to ids int32 [B, T], PAD after the EOS, and lengths int32 [B]."""

    def __init__(self, decoder: GreedyDecoder) -> None:
        super().__init__(auto_prefix=False)  # the captioner's parameters keep their names
        self.decoder = decoder
        self.sum = ops.ReduceSum()  # older servers do not know the operator `ops.sum`

    def construct(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask, _ = self.decoder(pixels)
        return ids, ops.cast(self.sum(mask, 1), mstype.int32)


def write_mindir(path: Path, decoder: GreedyDecoder, shape: tuple[int, int, int, int]) -> None:
    """Write the graph of greedy captions for pixels of `shape` [B, 3, H, H]. Errors: InputError above 1 GB."""
    # MindSpore accepts only plain ASCII file names without blanks, and makes the file readable only by its owner.
    with tempfile.TemporaryDirectory(prefix="mindir-") as scratch:
        pixels = Tensor(np.zeros(shape, np.float32))
        ms.export(ExportedCaptioner(decoder), pixels, file_name=f"{scratch}/captioner", file_format="MINDIR")
        written = Path(scratch, "captioner.mindir")
        if not written.is_file():
            raise InputError("the model has more than 1 GB of parameters, which MindSpore writes as several files")
        shutil.copyfile(written, path)


def load_mindir(path: Path) -> Callable[[np.ndarray], Outputs]:
    """Load a file of `write_mindir` as a function of pixels float32 [B, 3, H, H]."""
    graph = nn.GraphCell(ms.load(str(path)))

    def caption(pixels: np.ndarray) -> Outputs:
        ids, lengths = graph(Tensor(pixels))
        return ids.asnumpy(), lengths.asnumpy()

    return caption


def compare(
    decoder: GreedyDecoder, exported: Callable[[np.ndarray], Outputs], batches: Iterable[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Caption batches of pixels [B, 3, H, H] with both.

    Returns the decoder's ids int32 [n, T], and where the exported graph differs in ids or length, bool [n].
    """
    rows, differs = [], []
    for pixels in batches:
        ids, mask = [output.asnumpy() for output in decoder(Tensor(pixels))[:2]]
        exported_ids, exported_lengths = exported(pixels)
        rows.append(ids)
        differs.append((exported_ids != ids).any(1) | (exported_lengths != mask.sum(1)))
    return np.concatenate(rows), np.concatenate(differs)
