"""The files of results: written whole or not at all."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from src.config.schema import Config, EvalConfig
from src.data.questions import questions_file
from src.runtime.errors import InputError
from src.runtime.files import file_digest, whole_file


def write_json(path: Path, value: Any) -> None:
    """Write JSON. Errors: InputError naming the file."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8. Errors: InputError naming the file."""
    with _whole(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an .npz. Errors: InputError naming the file."""
    with _whole(path) as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote. Errors: InputError naming the file."""
    with _readable(path), np.load(path, allow_pickle=False) as file:
        return dict(file)


def read_samples(folder: Path, split: str) -> list[list[str]]:
    """The captions that eval.py has drawn for each image. Errors: InputError naming the file."""
    path = folder / f"samples_{split}.json"
    with _readable(path):
        return [row["captions"] for row in json.loads(path.read_text(encoding="utf-8"))]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): evaluate that run again") from None


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output_root") from None


def decoding_name(evaluation: EvalConfig) -> str:
    """How captions are decoded, for signatures and names of files: greedy, beam3, beam3-lp0.7, beam3-no3."""
    if evaluation.beams == 1:
        return "greedy"
    name = f"beam{evaluation.beams}"
    name += f"-lp{evaluation.length_penalty:g}" if evaluation.length_penalty else ""
    return name + ("-no3" if evaluation.block_trigrams else "")


def results_name(split: str, evaluation: EvalConfig) -> str:
    """What stands behind captions_, eval_ and segments_ in a run folder: the split, and a decoding but greedy."""
    decoding = decoding_name(evaluation)
    return split if decoding == "greedy" else f"{split}_{decoding}"


def examined_by(config: Config, split: str) -> str:
    """Who answers which questions in Prism's evaluation."""
    caprl = config.caprl
    who = "exact reading" if caprl.answerer == "reader" else f"{caprl.model} ({caprl.asked_for})"
    return f"{who} on {file_digest(questions_file(config, split))[:12]}"


def scored_as(config: Config) -> dict[str, Any]:
    """The settings that results depend on, as eval_*.json holds them."""
    return asdict(config.eval) | {"seed": config.seed}


def read_evaluation(folder: Path, name: str) -> dict[str, Any]:
    """What eval.py wrote into a run folder; `name` from `results_name`. Errors: InputError where it did not."""
    path = folder / f"eval_{name}.json"
    if not path.is_file():
        raise InputError(f"there is no {path}: evaluate that run first")
    return json.loads(path.read_text(encoding="utf-8"))
