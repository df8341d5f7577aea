"""The JSON files of results: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from src.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent. Errors: InputError naming the file."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output_root") from None


def read_evaluation(folder: Path, split: str) -> dict[str, Any]:
    """What eval.py wrote into a run folder. Errors: InputError where it did not."""
    path = folder / f"eval_{split}.json"
    if not path.is_file():
        raise InputError(f"there is no {path}: evaluate that run first")
    return json.loads(path.read_text(encoding="utf-8"))
