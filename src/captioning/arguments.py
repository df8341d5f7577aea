"""The flags of captioning photographs, which eval.py and scripts/run_eval.sh share."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from src.config.load import is_setting
from src.models.folder import given_checkpoint
from src.runtime.errors import InputError
from src.runtime.files import given_file, given_path

_NAME = re.compile(r"[\w.+-][\w.+ -]*")
_NOT_IN_NAMES = re.compile(r"[^\w.+= -]+")  # of a folder, which a column may be called as


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """--images and --output."""
    parser.add_argument(
        "--images", nargs="+", metavar="PHOTO", help="files, folders, patterns, @LIST (docs/captioning.md)"
    )
    parser.add_argument("--output", type=given_path, help="with --images: JSON lines to append to, in place of a table")


def read_image_arguments(arguments: argparse.Namespace, default: Path | None = None) -> dict[str, Path]:
    """The checkpoints by name; key=value words that stand behind --checkpoint or --images move to the overrides.

    arguments.config becomes the file that is given, an exported folder's, or `default`.
    Raises InputError where the flags do not go together.
    """
    wants_images = arguments.images is not None
    for flag in ("checkpoint", "images"):
        words = getattr(arguments, flag) or []
        arguments.overrides += [word for word in words if is_setting(word)]
        setattr(arguments, flag, [word for word in words if not is_setting(word)])
    arguments.images = [_without_home(word) for word in arguments.images]
    checkpoints = name_checkpoints(arguments.checkpoint or ())
    if wants_images and not arguments.images:
        raise InputError("--images names no photograph, only settings")
    if not arguments.images and arguments.output is not None:
        raise InputError("--output is for --images: a split's captions go into the run folder")
    if not arguments.images and len(checkpoints) > 1:
        raise InputError(
            "several checkpoints are for --images: a split is evaluated with one; photographs go behind --images"
        )
    if arguments.config is None and not any(path.is_dir() for path in checkpoints.values()):
        arguments.config = default
    for name, path in checkpoints.items():
        checkpoints[name], arguments.config = given_checkpoint(path, arguments.config)
    return checkpoints


def name_checkpoints(words: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by name, from NAME=PATH, or PATH alone, which is called as the folder of its run.

    Raises InputError where there is no such file, or a name cannot stand in a table, or stands for two.
    """
    checkpoints: dict[str, Path] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or "/" in name or os.path.exists(word):  # a path may hold = too
            text = word
            file = given_file(text).resolve()
            name = file.parent.parent.name if file.parent.name == "checkpoints" else file.name
            name = _NOT_IN_NAMES.sub("-", name).strip()
        elif not _NAME.fullmatch(name):
            raise InputError(f"--checkpoint {word}: '{name}' must be letters, digits, '.', '+', '-', '_' and blanks")
        path = given_file(text)
        if not text or not os.path.exists(path):
            raise InputError(f"--checkpoint {word}: there is no file {text or 'behind ='}")
        if name in checkpoints:
            raise InputError(f"--checkpoint: {checkpoints[name]} and {path} are both called {name}; give NAME=PATH")
        checkpoints[name] = path
    return checkpoints


def _without_home(item: str) -> str:
    """What --images is given, where the shell may have left ~ (behind @)."""
    list_sign = "@" if item.startswith("@") else ""
    return list_sign + os.path.expanduser(item.removeprefix(list_sign))
