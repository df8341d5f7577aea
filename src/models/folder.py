"""The folder that a checkpoint is exported to: weights, configuration, vocabulary, graphs, and facts for a server."""

from pathlib import Path

from src.config.schema import Config
from src.runtime.errors import InputError

MODEL = "model.safetensors"  # a checkpoint as src/training/checkpoint.py writes it, without the optimiser
CONFIG = "config.yaml"  # every key
TOKENIZER = "tokenizer.json"
FACTS = "export.json"


def given_checkpoint(path: Path, config: Path | str | None) -> tuple[Path, Path]:
    """The file of weights, and the configuration, that `--checkpoint` and `--config` name.

    path: a checkpoint's file, or an exported folder, which brings its own configuration where `config` is None.
    Errors: InputError where a folder is not an exported one, or a file comes without a configuration.
    """
    if not path.is_dir():
        if config is None:
            raise InputError(f"--config is missing: {path} is not an exported folder, which would include one")
        return path, Path(config)
    if (path / "checkpoints/best").is_file():
        raise InputError(f"{path} is a run folder; pass {path}/checkpoints/best")
    for name in (MODEL, CONFIG, TOKENIZER):
        if not (path / name).is_file():
            raise InputError(
                f"{path} is not a complete exported checkpoint: {name} is missing; copy it again, or pass a run's "
                "checkpoints/best"
            )
    return path / MODEL, Path(config or path / CONFIG)


def init_file(config: Config) -> Path | None:
    """Return the weights file that `init_checkpoint` names, of a checkpoint or an exported folder, or None.

    Errors: InputError if it is missing.
    """
    if config.init_checkpoint is None:
        return None
    path, _ = given_checkpoint(Path(config.init_checkpoint), "")
    if not path.is_file():
        raise InputError(f"init_checkpoint={path}: no such checkpoint; correct the path")
    return path
