"""The folder of a run: opened, checked, and known to be complete or to have started from other weights."""

import fcntl
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from src.config import Config
from src.config_load import differing_keys, load_config, resolved, stage_overrides, write_config
from src.errors import InputError
from src.files import file_digest

COMPLETED = "completed"  # a file of this name marks a finished run
_WAIT = 30  # seconds for another process to leave a run folder
_locks: dict[Path, IO] = {}
FIRST = "first"  # the checkpoint after CE's first epoch, kept where select is original


def is_complete(folder: Path, init: Path | None) -> bool:
    """Whether the run in `folder` has finished. Errors: InputError where it started from another file than `init`."""
    if not (folder / COMPLETED).is_file():
        return False
    check_init(folder, init, json.loads((folder / COMPLETED).read_text()))
    return True


def check_init(folder: Path, init: Path | None, state: dict[str, Any]) -> None:
    """InputError where the run in `folder` started from another file than `init`."""
    if init is not None and state.get("init", "") != file_digest(init):
        raise InputError(
            f"the run in {folder} started from other weights than {init} holds now: fresh=true starts over"
        )


def init_checkpoint(config: Config, config_file: Path, overrides: Sequence[str]) -> Path:
    """The CE checkpoint that RL starts from: `init_checkpoint`, or one of the run of `init_config`, as `select` says.

    Errors: InputError where there is none.
    """
    if config.init_checkpoint is not None:
        path = Path(config.init_checkpoint)
        mend = "check init_checkpoint"
    else:
        ce_file = config_file.parent / config.init_config
        name = FIRST if config.select == "original" else "best"
        path = load_config(ce_file, stage_overrides(overrides)).run_folder / "checkpoints" / name
        mend = f"train with {ce_file} first, or set init_checkpoint"
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path} to start from: {mend}")
    return path


def open_run_folder(config: Config) -> Path:
    """Make the run folder, or check that the run in it had the same configuration; it is this process's own from then.

    Errors: InputError where it cannot be written, where another process trains in it, or naming the keys that differ.
    """
    folder = config.run_folder
    try:
        _lock(folder)
        if config.fresh and folder.is_dir():
            held = [path for path in folder.iterdir() if path.name != "logs"]  # which src.launch is writing
            if held and not (folder / "config.yaml").is_file():
                raise InputError(f"{folder} is no run of this project, fresh=true does not delete it: choose name=...")
            for path in held:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        config_file = folder / "config.yaml"
        if config_file.exists():
            differing = differing_keys(_read_config(config_file), resolved(config))
            if differing:
                raise InputError(
                    f"{folder} holds a run with other values of {', '.join(differing)}; "
                    "give another name=..., or fresh=true to start over"
                )
        write_config(config, config_file)
    except OSError as error:
        raise InputError(f"cannot write the run folder {folder}: {error}; choose another output_root") from None
    return folder


def _lock(folder: Path) -> None:
    """Hold a lock beside `folder` until this process ends; one that was killed a moment ago may be saving yet."""
    path = folder.with_name(f".{folder.name}.lock")
    if path in _locks:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115 (held)
    end = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise InputError(f"{folder}: another run trains there; wait for its end, or give name=...") from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return
        else:
            _locks[path] = file
            return


def _read_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise InputError(f"{path} is damaged: delete it to go on with this configuration, or fresh=true starts over")
    return tree
