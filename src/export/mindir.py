"""Export a policy as MindIR graphs from pixels to token ids, and compare their captions with the original's.

A captioner is one graph: a server makes one call, and the features (1.6 MB per image for ResNet-50) stay on the device.
A pretrained language model is two: what is computed once per image, and the step that is called once per token.

Letters: B images, H image side, T tokens, L layers, K heads of keys, P prefix tokens, d head size.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src import __version__
from src.config.schema import Config
from src.data.dataset import build_image_source, padded_batches, preprocessing
from src.data.locate import evaluated_split, find_images, read_records
from src.data.tokenizer import TokenIds, Tokenizer
from src.decoding.distribution import most_probable
from src.decoding.generation import compile_generation
from src.decoding.sampler import GreedyDecoder
from src.models.policy import Policy
from src.runtime.files import file_digest
from src.runtime.rng import uniforms

Outputs = tuple[np.ndarray, np.ndarray]  # ids int32 [B, T], PAD after the end; lengths int32 [B], with the end
Captioning = Callable[[np.ndarray], Outputs]  # of pixels float32 [B, 3, H, H]


class Exported(NamedTuple):
    """A cell to be written as a graph, the name of its file, its inputs, and types and shapes of its outputs."""

    file: str
    cell: nn.Cell
    inputs: dict[str, Tensor]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


class ExportedCaptioner(nn.Cell):
    """Maps preprocessed pixels float32 [B, 3, H, H] to ids int32 [B, T], PAD after the EOS, and lengths int32 [B]."""

    def __init__(self, decoder: GreedyDecoder) -> None:
        super().__init__(auto_prefix=False)  # the captioner's parameters keep their names
        self.decoder = decoder
        self.sum = ops.ReduceSum()  # older servers do not know the operator `ops.sum`

    def construct(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask, _ = self.decoder(pixels)
        return ids, ops.cast(self.sum(mask, 1), mstype.int32)


class Prefill(nn.Cell):
    """Maps pixels float32 [B, 3, H, H] to the keys and values of the prompt with its image: [2L, K*B, P, d]."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, pixels: Tensor) -> Tensor:
        return ops.stack(self.policy.prefix(pixels))


class GreedyStep(nn.Cell):
    """Maps token int32 [B], position int32 [], prefix [2L, K*B, P, d] and cache [2L, K*B, T, d] to the most probable
    next token int32 [B], and the keys and values [2L, K*B, d] that belong into the cache at `position`.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, token: Tensor, position: Tensor, prefix: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        parts, rows = cache.shape[:2]
        past = tuple([cache[part].reshape(-1, cache.shape[-1]) for part in range(parts)])
        hidden, new = self.policy.step(token, position, tuple([prefix[part] for part in range(parts)]), past)
        return most_probable(self.policy.logits(hidden)), ops.stack(new).reshape(parts, rows, -1)


def graphs_of(policy: Policy, config: Config, batch: int) -> dict[str, Exported]:
    """The graphs for B = `batch` images, by their names in export.json."""
    side, tokens = config.data.image_size, config.eval.tokens
    pixels = {"pixels": Tensor(np.zeros((batch, 3, side, side), np.float32))}
    if policy.unrolled:
        ids = {"ids": ("int32", (batch, tokens)), "lengths": ("int32", (batch,))}
        return {"graph": Exported("captioner", ExportedCaptioner(GreedyDecoder(policy, tokens)), pixels, ids)}
    prefix = np.stack(policy.empty_prefix(batch))
    parts, rows, _, size = prefix.shape
    dtype = str(prefix.dtype)
    inputs = {
        "token": Tensor(np.zeros(batch, np.int32)),
        "position": Tensor(0, ms.int32),
        "prefix": Tensor(prefix),
        "cache": Tensor(np.zeros((parts, rows, tokens, size), prefix.dtype)),
    }
    outputs = {"token": ("int32", (batch,)), "keys": (dtype, (parts, rows, size))}
    return {
        "prefill": Exported("prefill", Prefill(policy), pixels, {"prefix": (dtype, prefix.shape)}),
        "step": Exported("step", GreedyStep(policy), inputs, outputs),
    }


def write_mindir(folder: Path, exported: Exported) -> Path:
    """Write a graph to `folder` and return its file.

    It is NAME.mindir or, above 1 GB of parameters, NAME_graph.mindir beside the folder NAME_variables.
    """
    name = exported.file
    # MindSpore accepts only plain ASCII file names without blanks, and makes files readable only by their owner.
    with tempfile.TemporaryDirectory(prefix="mindir-") as scratch:
        ms.export(exported.cell, *exported.inputs.values(), file_name=f"{scratch}/{name}", file_format="MINDIR")
        for written in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            target = folder / written.relative_to(scratch)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(written, target)
    (graph,) = folder.glob(f"{name}*.mindir")
    return graph


def load_mindir(files: Mapping[str, Path], exported: Mapping[str, Exported], ids: TokenIds) -> Captioning:
    """Read the files of `write_mindir` back as one function."""
    graphs = {name: nn.GraphCell(ms.load(str(path))) for name, path in files.items()}
    if "graph" in graphs:
        return lambda pixels: tuple(output.asnumpy() for output in graphs["graph"](Tensor(pixels)))

    def caption(pixels: np.ndarray) -> Outputs:
        """As docs/export.md has servers do it."""
        cache = exported["step"].inputs["cache"].asnumpy().copy()
        prefix = graphs["prefill"](Tensor(pixels))
        token = Tensor(np.full(len(pixels), ids.bos, np.int32))
        columns = []
        for position in range(cache.shape[2]):
            token, keys = graphs["step"](token, Tensor(position, ms.int32), prefix, Tensor(cache))
            cache[:, :, position] = keys.asnumpy()
            columns.append(token.asnumpy())
        rows = np.stack(columns, 1)
        ended = np.isin(rows, ids.eos)
        lengths = np.where(ended.any(1), ended.argmax(1) + 1, rows.shape[1]).astype(np.int32)
        return np.where(np.arange(rows.shape[1]) < lengths[:, None], rows, ids.pad), lengths

    return caption


def captions_of(policy: Policy, tokens: int) -> Captioning:
    """What the project itself captions pixels with."""
    decode = compile_generation("greedy", GreedyDecoder(policy, tokens), lambda name, cell: cell)

    def caption(pixels: np.ndarray) -> Outputs:
        ids, mask = [output.asnumpy() for output in decode(Tensor(pixels))[:2]]
        return ids, mask.sum(1)

    return caption


def compare(original: Captioning, exported: Captioning, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Caption batches of pixels [B, 3, H, H] with both.

    Returns the original's ids int32 [n, T], and where the exported graph differs in ids or length, bool [n].
    """
    rows, differs = [], []
    for pixels in batches:
        ids, lengths = original(pixels)
        exported_ids, exported_lengths = exported(pixels)
        rows.append(ids)
        differs.append((exported_ids != ids).any(1) | (exported_lengths != lengths))
    return np.concatenate(rows), np.concatenate(differs)


def graph_facts(exported: Exported, file: Path) -> dict[str, Any]:
    """File, digest, and types and shapes of a graph."""
    inputs = {
        name: {"dtype": str(value.dtype).lower(), "shape": list(value.shape)} for name, value in exported.inputs.items()
    }
    outputs = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in exported.outputs.items()}
    return {"file": file.name, "sha256": file_digest(file), "inputs": inputs, "outputs": outputs}


def server_facts(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a server needs beside the graphs, without this project and its configuration (docs/export.md)."""
    side, pixels = config.data.image_size, asdict(preprocessing(config))
    steps = ["normalize", "resize"] if config.data.resize_after_normalize else ["resize", "normalize"]
    ids = tokenizer.token_ids
    tokens: dict[str, Any] = {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id, "bos": ids.bos, "eos": tokenizer.eos_id}
    if config.policy.is_pretrained:
        tokens = {"pad": ids.pad, "first": ids.bos, "ends": list(ids.eos)}
    interpolation = pixels.pop("resampling")
    if config.data.aspect == "pad":
        steps.insert(0, "fill up to a square with bars of 128 on both sides")
    return {
        "version": __version__,
        "mindspore": ms.__version__,
        "tokens": tokens,
        "preprocessing": {
            "order": ["decode", *steps, "HWC to CHW"],
            "decode": "RGB, 0 to 255, upright by Exif, transparency on white, of 16 bits the upper eight",
            "resize": {"height": side, "width": side, "interpolation": interpolation, "crop": False},
            "normalize": {"formula": "(pixel * scale - mean) / std", **pixels},
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
