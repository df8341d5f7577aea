"""What an exported folder is made of, and the pixels that its graph is tried on.

Letters: B images, H image side.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from src import __version__
from src.config.load import whole, write_tree
from src.config.schema import Config
from src.data.dataset import build_image_source, padded_batches, preprocessing
from src.data.locate import evaluated_split, find_images, read_records
from src.data.tokenizer import Tokenizer
from src.models.checkpoint import read_state
from src.models.folder import CONFIG, MODEL, TOKENIZER
from src.models.policy import Policy
from src.runtime.files import file_digest
from src.runtime.rng import uniforms
from src.training.checkpoint import save_checkpoint


def write_checkpoint_folder(
    folder: Path, config: Config, checkpoint: Path, policy: Policy, tokenizer: Tokenizer
) -> None:
    """Make `folder` with weights, every key of the configuration, and vocabulary: what eval.py needs.

    The checkpoint's state goes with the weights, with the versions that wrote them here.
    """
    folder.mkdir()
    state = read_state(checkpoint) | {"version": __version__, "mindspore": ms.__version__}
    save_checkpoint(folder / MODEL, policy, state)
    write_tree(whole(replace(config, device="auto", device_id=None)), folder / CONFIG)  # it is for other machines
    tokenizer.save(folder / TOKENIZER)


def server_facts(config: Config, tokenizer: Tokenizer, graph: Path, batch: int) -> dict[str, Any]:
    """What a server must know that has neither this project nor its configuration (docs/export.md)."""
    side, tokens = config.data.image_size, config.eval.tokens
    steps = ["normalize", "resize"] if config.data.resize_after_normalize else ["resize", "normalize"]
    return {
        "version": __version__,
        "mindspore": ms.__version__,
        "graph": {
            "file": graph.name,
            "sha256": file_digest(graph),
            "inputs": {"pixels": {"dtype": "float32", "shape": [batch, 3, side, side]}},
            "outputs": {
                "ids": {"dtype": "int32", "shape": [batch, tokens]},
                "lengths": {"dtype": "int32", "shape": [batch]},
            },
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
    """What the graph is tried on, in words, and its batches float32 [B, 3, H, H], the last filled up.

    The first `images` of the split that is evaluated; where there is no folder `data.root`, noise.
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
