"""Name, read and write the files of results, whole or not at all."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from src.config.schema import Config, EvalConfig
from src.data.questions import questions_file
from src.runtime.errors import InputError, one_line
from src.runtime.files import file_digest, whole_file, writing


def write_json(path: Path, value: Any) -> None:
    """Write JSON. Errors: InputError naming the file."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8. Errors: InputError naming the file."""
    _write(path, lambda file: file.write(text.encode()))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an .npz. Errors: InputError naming the file."""
    _write(path, lambda file: np.savez(file, **arrays))


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            write(file)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of `write_arrays`. Errors: InputError naming the file."""
    with _readable(path), np.load(path, allow_pickle=False) as file:
        return dict(file)


def read_samples(folder: Path, split: str) -> list[list[str]]:
    """Read the captions that eval.py sampled for each image. Errors: InputError naming the file."""
    path = folder / f"samples_{split}.json"
    with _readable(path):
        return [row["captions"] for row in json.loads(path.read_bytes())]


def read_evaluation(folder: Path, name: str) -> dict[str, Any]:
    """Read what eval.py wrote into a run folder; name: as in `results_name`. Errors: InputError naming the file."""
    path = folder / f"eval_{name}.json"
    with _readable(path):
        return json.loads(path.read_bytes())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise InputError(f"{path} cannot be read ({reason}); evaluate that run again") from None


def decoding_name(evaluation: EvalConfig) -> str:
    """Name the decoding, for signatures and names of files: greedy, beam3, beam3-lp0.7, beam3-no3."""
    if evaluation.beams == 1:
        return "greedy"
    name = f"beam{evaluation.beams}"
    name += f"-lp{evaluation.length_penalty:g}" if evaluation.length_penalty else ""
    return name + ("-no3" if evaluation.block_trigrams else "")


def results_name(split: str, evaluation: EvalConfig) -> str:
    """Name the results after captions_, eval_ and segments_ in a run folder: the split, and any decoding but greedy."""
    decoding = decoding_name(evaluation)
    return split if decoding == "greedy" else f"{split}_{decoding}"


def examined_by(config: Config, split: str) -> str:
    """Name the answerer and the questions of Prism's evaluation."""
    caprl = config.caprl
    who = "exact reading" if caprl.answerer == "reader" else f"{caprl.model} ({caprl.asked_for})"
    return f"{who} on {file_digest(questions_file(config, split))[:12]}"


def scored_as(config: Config) -> dict[str, Any]:
    """Return the settings that results depend on, as stored in eval_*.json."""
    return asdict(config.eval) | {"seed": config.seed}
