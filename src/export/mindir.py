"""Export the captioner as one MindIR graph from pixels to token ids, and compare its captions with the original's.

Encoder and decoder share one graph: a server makes one call, and the features (1.6 MB per image for ResNet-50) stay on
the device.

Letters: B images, H image side, T tokens.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src import __version__
from src.config.schema import Config
from src.data.dataset import build_image_source, padded_batches, preprocessing
from src.data.locate import evaluated_split, find_images, read_records
from src.data.tokenizer import Tokenizer
from src.decoding.sampler import GreedyDecoder
from src.runtime.errors import InputError
from src.runtime.files import file_digest
from src.runtime.rng import uniforms

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
    return lambda pixels: tuple(output.asnumpy() for output in graph(Tensor(pixels)))


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


def server_facts(config: Config, tokenizer: Tokenizer, graph: Path, batch: int) -> dict[str, Any]:
    """The facts that a server needs without this project and its configuration (docs/export.md)."""
    side, tokens, integers = config.data.image_size, config.eval.tokens, {"dtype": "int32"}
    steps = ["normalize", "resize"] if config.data.resize_after_normalize else ["resize", "normalize"]
    return {
        "version": __version__,
        "mindspore": ms.__version__,
        "graph": {
            "file": graph.name,
            "sha256": file_digest(graph),
            "inputs": {"pixels": {"dtype": "float32", "shape": [batch, 3, side, side]}},
            "outputs": {"ids": integers | {"shape": [batch, tokens]}, "lengths": integers | {"shape": [batch]}},
        },
        "tokens": {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id},
        "preprocessing": {
            "order": ["decode", *steps, "HWC to CHW"],
            "decode": "RGB, 0 to 255, upright by Exif, transparency on white, of 16 bits the upper eight",
            "resize": {"height": side, "width": side, "interpolation": "bilinear, not antialiased", "crop": False},
            "normalize": {"formula": "(pixel * scale - mean) / std", **asdict(preprocessing(config))},
        },
    }


def compared_pixels(config: Config, images: int, batch: int) -> tuple[str, Iterable[np.ndarray]]:
    """The images to test the graph with, in words, and as batches float32 [B, 3, H, H], the last filled up.

    They are the first `images` of the evaluated split, or noise if the folder `data.root` does not exist.
    """
    if Path(config.data.root).is_dir():
        split = evaluated_split(config, None)
        records = read_records(config)[0][split][:images]
        source = build_image_source(config, find_images(config, [record.file for record in records]))
        return f"{len(records)} {split} images", source.batches(padded_batches(len(records), batch))
    side, wanted = config.data.image_size, preprocessing(config)
    draws = uniforms(config.seed, 0, 0, images, 3 * side * side).reshape(images, 3, side, side)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (wanted.mean, wanted.std))
    pixels = ((255 * draws * wanted.scale - mean) / std).astype(np.float32)
    return f"{images} images of noise", [pixels[rows] for rows in padded_batches(images, batch)]
