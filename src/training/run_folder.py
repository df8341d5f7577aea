"""Claim the folder of a run, check it against the settings that its run started with, and open it."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from src.config.load import differing_keys, load_config, resolved, stage_overrides, write_tree
from src.config.schema import Config
from src.models.folder import init_file
from src.runtime.errors import InputError
from src.runtime.files import file_digest, lock, writing

if TYPE_CHECKING:
    from src.data.records import Record

COMPLETED = "completed"  # a file of this name marks a finished run
_WAIT = 30  # seconds that another process may take to release a run folder
_locks: dict[Path, IO] = {}
FIRST = "first"  # the checkpoint after CE's first epoch, kept if select is original
_CHECKPOINTS = ("last", "previous", "best", FIRST, "damaged")
_WRITTEN = (*(f"checkpoints/{name}" for name in _CHECKPOINTS), "metrics.jsonl", "events.out.tfevents.*", "skipped.txt")


def init_checkpoint(config: Config, config_file: Path, overrides: Sequence[str]) -> Path | None:
    """The checkpoint that a run starts from: `init_checkpoint`, or for RL that of its CE run which `select` chooses.

    Errors: InputError if it is missing, or in the run's own folder.
    """
    path = init_file(config)
    if path is None and config.stage != "ce" and config.init_config is not None:
        ce_file = config_file.parent / config.init_config
        name = FIRST if config.select == "original" else "best"
        path = load_config(ce_file, stage_overrides(overrides)).run_folder / "checkpoints" / name
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint; train with {ce_file} first, or set init_checkpoint")
    if path is not None and config.run_folder.resolve() in path.resolve().parents:
        raise InputError(f"init_checkpoint={path} is in the folder of the new run; pass name=NEW to keep it")
    return path


def claim_run_folder(config: Config, init: Path | None) -> None:
    """Lock the run folder for this process, and check that its run started with the same configuration and weights.

    A complete run must have the same data, too. A run that has saved no update accepts other settings. No file changes.
    Errors: InputError if the folder cannot be written, another process trains in it, or naming what differs.
    """
    folder = config.run_folder
    with writing(folder):
        _lock(folder)
    if config.fresh:
        if _held(folder) and not (folder / "config.yaml").is_file():
            raise InputError(f"{folder} was not created by this project; fresh=true will not delete it: pass name=NEW")
        stage = None
        with contextlib.suppress(InputError):  # a damaged config.yaml is deleted with the rest
            stage = _read_config(folder / "config.yaml").get("stage") if is_complete(folder) else None
        if stage not in (None, config.stage):
            raise InputError(f"{folder} holds a finished run of stage {stage}, which fresh=true keeps; pass name=NEW")
        return
    state = saved_state(folder)
    if state is None:
        return
    file = folder / "config.yaml"
    if file.exists():
        held = _read_config(file)
        differing = differing_keys(held, resolved(config))
        if "data" in state and "data.root" in differing:  # data may move, because their digest is compared
            differing.remove("data.root")
        if differing:
            raise _conflict(config, f"holds a run with other values of {', '.join(differing)};")
        if init is None and "init" in state:
            print(f"{folder} started from init_checkpoint={held.get('init_checkpoint')} and keeps it")
    by_reader = config.stage != "ce" and config.rewards.caprl > 0 and config.caprl.answerer == "reader"
    if state and by_reader and "rewards" not in state:
        raise _conflict(config, "was rewarded by the trained reader of version 0.1, which this version no longer has;")
    if state and init is not None and state.get("init", "") != file_digest(init):
        raise _conflict(config, f"started from other weights than {init} holds now; restore that file, or")
    if is_complete(folder) and "data" in state:
        from src.data.locate import read_records

        check_data(config, read_records(config)[0], state)


def is_complete(folder: Path) -> bool:
    """Whether the run in `folder` has finished."""
    return (folder / COMPLETED).is_file()


def saved_state(folder: Path) -> dict[str, Any] | None:
    """The state that the run in `folder` saved at its end or with an update; None if it saved no update.

    Empty if the checkpoints cannot be read. Errors: InputError.
    """
    if is_complete(folder):
        with contextlib.suppress(ValueError, TypeError):
            return json.loads((folder / COMPLETED).read_text(encoding="utf-8")) | {}
        raise InputError(f"{folder / COMPLETED} is damaged; delete this file to resume the run")
    paths = [path for name in _CHECKPOINTS if (path := folder / "checkpoints" / name).is_file()]
    if not paths:
        return None
    from src.models.checkpoint import read_state  # imports MindSpore

    readable = 0
    for path in paths:
        with contextlib.suppress(InputError):
            state = read_state(path)
            if state.get("step", 1) > 0:
                return state
            readable += 1
    return None if readable == len(paths) else {}


def data_state(records: Mapping[str, Sequence["Record"]]) -> dict[str, dict[str, Any]]:
    """Counts and digests of the images and captions that training reads, in order, independent of their folder."""
    state = {}
    for split in ("train", "val"):
        text = "".join(json.dumps([record.image_id, *record.captions]) for record in records[split])
        state[split] = {"images": len(records[split]), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return state


def check_data(config: Config, records: Mapping[str, Sequence["Record"]], state: dict[str, Any]) -> None:
    """InputError if the run with this state was trained on other data; older versions kept no digest."""
    held, now = state.get("data"), data_state(records)
    if held is None or held == now:
        return
    images = [", ".join(f"{part['images']} {split}" for split, part in data.items()) for data in (held, now)]
    changed = "with other captions, ids or order than" if images[0] == images[1] else f"not the {images[1]} images that"
    text = f"was trained on {images[0]} images, {changed} data.root={config.data.root} holds now; restore them, or"
    raise _conflict(config, text)


def open_run_folder(config: Config) -> None:
    """Delete an earlier run from the claimed folder, if fresh=true or it saved no update, and write config.yaml.

    Errors: InputError if the folder cannot be written.
    """
    folder, file = config.run_folder, config.run_folder / "config.yaml"
    tree = resolved(config)
    with writing(folder):
        if config.fresh:
            for path in _held(folder):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif file.is_file() and saved_state(folder) is None:
            for path in (path for pattern in _WRITTEN for path in folder.glob(pattern)):
                path.unlink()
        elif file.is_file() and tree["init_checkpoint"] is None:
            tree["init_checkpoint"] = _read_config(file).get("init_checkpoint")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_tree(tree, file)


def _conflict(config: Config, text: str) -> InputError:
    """The error that a run cannot resume. Following its advice affects no other stage of the same command."""
    name = "output_root=NEW (for scripts/run_ce.sh, name=NEW)" if config.stage == "ce" else "name=NEW"
    folder = config.run_folder
    return InputError(f"{folder} {text} pass {name}, or delete {folder} to start this stage over")


def _held(folder: Path) -> list[Path]:
    """The contents of a run folder, except the logs that src.runtime.launch is writing."""
    return [path for path in folder.iterdir() if path.name != "logs"] if folder.is_dir() else []


def _lock(folder: Path) -> None:
    """Hold a lock beside `folder` until this process ends; a process that was just killed may still be saving."""
    path = folder.with_name(f".{folder.name}.lock")
    if path in _locks:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115 (held)
    end = time.monotonic() + _WAIT
    with contextlib.suppress(OSError):  # a file system without locks
        while not lock(file):
            if time.monotonic() > end:
                raise InputError(f"{folder}: another run trains there; wait for its end, or pass name=NEW")
            time.sleep(0.2)
    _locks[path] = file


def _read_config(path: Path) -> dict[str, Any]:
    with contextlib.suppress(UnicodeDecodeError, yaml.YAMLError):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(tree, dict):
            return tree
    raise InputError(f"{path} is damaged; delete this file to resume the run with this configuration")
