"""The flags for captioning photographs, shared by eval.py and scripts/run_eval.sh."""

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
_NOT_IN_NAMES = re.compile(r"[^\w.+= -]+")  # of a folder that gives a column its name


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --images and --output."""
    images = "files, folders, patterns, @LIST (docs/captioning.md)"
    parser.add_argument("--images", nargs="+", metavar="PHOTO", help=images)
    parser.add_argument("--output", type=given_path, help="with --images: append JSON lines, print no table")


def read_image_arguments(arguments: argparse.Namespace, default: Path | None = None) -> dict[str, Path]:
    """Return the checkpoints by name; move key=value words behind --checkpoint or --images to the overrides.

    arguments.config becomes the given file, an exported folder's, or `default`.
    Errors: InputError if the flags exclude each other.
    """
    wants_images = arguments.images is not None
    for flag in ("checkpoint", "images"):
        words = getattr(arguments, flag) or []
        arguments.overrides += [word for word in words if is_setting(word)]
        setattr(arguments, flag, [word for word in words if not is_setting(word)])
    paths = [re.fullmatch("(@?)(.*)", word, re.DOTALL) for word in arguments.images]
    arguments.images = [path[1] + os.path.expanduser(path[2]) for path in paths if path]  # the shell leaves ~ behind @
    checkpoints = name_checkpoints(arguments.checkpoint or ())
    if wants_images and not arguments.images:
        raise InputError("--images names no photograph, only settings; add files or folders")
    if not arguments.images and arguments.output is not None:
        raise InputError("--output is for --images: captions of a split go into the run folder")
    if not arguments.images and len(checkpoints) > 1:
        raise InputError("several checkpoints are for --images; pass one to evaluate a split, or add --images")
    if arguments.config is None and not any(path.is_dir() for path in checkpoints.values()):
        arguments.config = default
    for name, path in checkpoints.items():
        checkpoints[name], arguments.config = given_checkpoint(path, arguments.config)
    return checkpoints


def name_checkpoints(words: Sequence[str]) -> dict[str, Path]:
    """Return checkpoints by name, from NAME=PATH, or PATH alone, which is named after the folder of its run.

    Errors: InputError if a file is missing, or a name does not fit into a table or is used twice.
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
            raise InputError(f"--checkpoint {word}: '{name}' must be letters, digits, '.', '+', '-', '_' and spaces")
        path = given_file(text)
        if not text or not os.path.exists(path):
            raise InputError(f"--checkpoint {word}: there is no file {text or 'behind ='}; pass [NAME=]PATH")
        if name in checkpoints:
            raise InputError(f"--checkpoint: {checkpoints[name]} and {path} are both called {name}; pass NAME=PATH")
        checkpoints[name] = path
    return checkpoints
