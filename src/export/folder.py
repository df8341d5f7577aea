"""The folder that a checkpoint is exported to: weights, configuration, vocabulary, a graph, and facts for a server."""

from pathlib import Path

from src.errors import InputError

MODEL = "model.safetensors"  # a checkpoint as src/training/checkpoint.py writes it, without the optimiser
CONFIG = "config.yaml"  # every key
TOKENIZER = "tokenizer.json"
GRAPH = "captioner.mindir"
FACTS = "export.json"


def given_checkpoint(path: Path, config: Path | str | None) -> tuple[Path, Path]:
    """The file of weights, and the configuration, that `--checkpoint` and `--config` name.

    path: a checkpoint's file, or an exported folder, which brings its own configuration where `config` is None.
    Errors: InputError where a folder is not an exported one, or a file comes without a configuration.
    """
    if not path.is_dir():
        if config is None:
            raise InputError(f"--config is missing: only an exported folder brings its own, and {path} is none")
        return path, Path(config)
    if (path / "checkpoints/best").is_file():
        raise InputError(f"{path} is the folder of a run; give {path}/checkpoints/best")
    for name in (MODEL, CONFIG, TOKENIZER):
        if not (path / name).is_file():
            raise InputError(
                f"{path} is no whole exported checkpoint: it has no {name}; copy it again, or name a run's "
                "checkpoints/best"
            )
    return path / MODEL, Path(config or path / CONFIG)
