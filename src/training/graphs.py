"""The cache of a run's compiled graphs."""

import os
from pathlib import Path

from src.config.load import resolved
from src.config.schema import Config
from src.data.model_folder import config_digest
from src.data.tokenizer import Tokenizer
from src.runtime.compile_cache import GraphCache
from src.runtime.workers import Workers

# Keys and sections that no graph holds a value of.
_NOT_IN_GRAPHS: tuple[str, ...] = (
    "seed",
    "output_root",
    "name",
    "device_id",
    "fresh",
    "stop_after_minutes",
    "log_every",
    "select",
)
_NOT_IN_GRAPHS += ("init_config", "init_checkpoint", "data", "demo", "tokenizer", "rewards", "cider", "caprl", "length")


def graph_cache(config: Config, tokenizer: Tokenizer, workers: Workers, train_images: int = 0) -> GraphCache:
    """The compiled graphs of a run: in the cache folder, or where CAPTIONER_GRAPHS says.

    train_images: the learning rate's schedule counts them.
    """
    settings = {key: value for key, value in resolved(config).items() if key not in _NOT_IN_GRAPHS}
    settings |= {"image_size": config.data.image_size}
    settings["models"] = [config_digest(folder) for folder in (config.language_folder, config.pixels_folder)]
    return GraphCache(
        Path(os.environ.get("CAPTIONER_GRAPHS") or config.cache_folder / "graphs"),
        {"config": settings, "tokens": tokenizer.fingerprint, "images": train_images, "workers": workers.size},
    )
