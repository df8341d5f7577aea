"""Reading a configuration: a YAML file with one `base:` < `key=value` from the command line.

An unknown key, a wrong type or an impossible combination is an InputError that names the key.
"""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from src.config.rules import check, flatten
from src.config.schema import FILE_KEYS, INNER_FILE_KEYS, Config
from src.runtime.errors import InputError
from src.runtime.files import ROOT, from_root, to_root, whole_file

# Keys that change where or how a run computes, not what: a run may go on with other values of them.
NOT_COMPARED: tuple[str, ...] = (
    "output_root",
    "name",
    "device",
    "device_id",
    "fresh",
    "stop_after_minutes",
    "log_every",
    "data.workers",
    "data.mindrecord",
    "init_checkpoint",  # a digest of its weights is compared instead
)
NOT_COMPARED += ("eval.beams", "eval.length_penalty", "eval.block_trigrams", "eval.samples")
# These decide which questions get no answer, never what an answer is.
NOT_COMPARED += ("caprl.max_failed", "caprl.base_url", "caprl.timeout", "caprl.retries", "caprl.concurrency")
NOT_COMPARED += ("caprl.max_tokens",)
# Sections that a stage does not read are left out of its resolved configuration.
RL_SECTIONS: tuple[str, ...] = ("rl", "advantage", "kl", "loss", "rewards", "cider", "caprl", "length")
RL_SECTIONS += ("init_config",)
_BASE = ROOT / "configs/base.yaml"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, its chain of `base:` files and `key=value` overrides.

    Errors: InputError naming the file or key, with the nearest valid key where one is unknown.
    """
    path = Path(path)
    tree = _load_tree(path, seen=())
    _map_values(tree, FILE_KEYS, from_root)
    configured_seed = tree.get("seed")
    for override in current_keys(overrides):
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"'{override}' is not of the form key=value")
        _set(tree, key, _parse(text, key), f"command line ({override})")
    _map_values(tree, (*FILE_KEYS, *INNER_FILE_KEYS), os.path.expanduser)
    if tree.get("name") is None:
        suffix = f"-seed{tree['seed']}" if tree.get("seed") != configured_seed else ""
        data = tree.get("data")
        dataset = data.get("dataset") if isinstance(data, dict) else None
        tree["name"] = f"{dataset}-{path.stem}{suffix}"
    config = _build(Config, tree, "", str(path))
    check(config)
    return config


def current_keys(overrides: Sequence[str]) -> list[str]:
    """Overrides with `rl.` for `grpo.`, the former name of the section. Errors: InputError if both are given."""
    given = [section for section in ("grpo.", "rl.") if any(text.startswith(section) for text in overrides)]
    if len(given) == 2:
        raise InputError("grpo.* and rl.* are both given: grpo is the former name of rl; use rl.* only")
    return [re.sub(r"^grpo\.", "rl.", override) for override in overrides]


def _current_sections(tree: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """The same for a tree."""
    if "grpo" not in tree:
        return tree
    if "rl" in tree:
        raise InputError(f"{path} holds the sections grpo and rl: grpo is the former name of rl; use rl only")
    return {"rl" if key == "grpo" else key: value for key, value in tree.items()}


def is_setting(word: str) -> bool:
    """Whether a word among file names is key=value: the key is known, or looks like one, and no file has that name."""
    key, separator, _ = word.partition("=")
    looks_like_one = key in _KEYS or re.fullmatch(r"[a-z]+(\.[a-z_0-9]+)+", key) is not None
    return bool(separator) and looks_like_one and not os.path.lexists(word)


def stage_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides for the stage that comes before: all but those that are about the last one alone."""
    return [
        override for override in overrides if override.partition("=")[0] not in ("name", "fresh", "init_checkpoint")
    ]


def resolved(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries, without the sections that its stage does not read."""
    tree = dataclasses.asdict(config)
    unread = (RL_SECTIONS if config.stage == "ce" else ("ce",)) + (() if config.data.dataset == "demo" else ("demo",))
    # The settings of a reward stand in the section of its name.
    unread += tuple(name for name, weight in tree["rewards"].items() if weight == 0)
    _map_values(tree, FILE_KEYS, to_root)
    return {key: value for key, value in tree.items() if key not in unread}


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two resolved configurations, but for NOT_COMPARED.

    A key that one of them lacks has the value of configs/base.yaml: an older version wrote it, or its stage does not
    read that section.
    """
    defaults = flatten(_load_tree(_BASE, seen=()))
    old, new = (defaults | flatten(_current_sections(tree, "config.yaml")) for tree in (old, new))
    for tree in (old, new):  # a relative path, and the absolute one of the same file
        tree |= {key: os.path.normpath(ROOT / tree[key]) for key in FILE_KEYS if isinstance(tree.get(key), str)}
    keys = sorted((old.keys() | new.keys()) - set(NOT_COMPARED))
    missing = object()
    return [key for key in keys if old.get(key, missing) != new.get(key, missing)]


def write_whole_config(config: Config, path: Path) -> None:
    """Write every key, also of sections that the stage does not read: `load_config` takes the file without a base."""
    tree = dataclasses.asdict(config)
    _map_values(tree, FILE_KEYS, to_root)
    write_tree(tree, path)


def write_tree(tree: dict[str, Any], path: Path) -> None:
    """Write a configuration, such as the resolved one, as YAML."""
    with whole_file(path) as partial:
        partial.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _load_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise InputError(f"{path}: its base: leads back to itself")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    tree = _current_sections(tree, path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{path}: base must be the path of one YAML file, relative to this one")
    merged = _load_tree(path.parent / base, (*seen, path.resolve()))
    for key, value in flatten(tree).items():
        _set(merged, key, value, str(path))
    return merged


def _map_values(tree: dict[str, Any], keys: Sequence[str], change: Callable[[str], str]) -> None:
    """Change, in place, those of the values of dotted `keys` that are texts."""
    for key in keys:
        *sections, last = key.split(".")
        place: Any = tree
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(last), str):
            place[last] = change(place[last])


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as a string; this reads it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, key: str) -> Any:
    """A value of the command line: YAML, but a name or path as it stands, unless it is null or in quotes."""
    nothing = ("", "null") if _KEYS.get(key) is str else ("", "null", "~")  # ~: the home folder, where null is no value
    if _KEYS.get(key) in (str, str | None) and text not in nothing and text[0] not in "'\"":
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise InputError(f"{key}={text}: the value is not valid YAML; put it in quotes") from None


def _set(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *sections, last = key.split(".")
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"{origin}: unknown key '{key}'{hint}")
    for number, section in enumerate(sections, start=1):
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise InputError(f"{origin}: '{'.'.join(sections[:number])}' must be a section of keys, not {tree!r}")
    tree[last] = _convert(value, _KEYS[key], key, origin)


def _keys(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every dotted key."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        keys |= _keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else {prefix + name: kind}
    return keys


_KEYS = _keys(Config)


def _build(cls: Any, tree: Any, prefix: str, origin: str) -> Any:
    if not isinstance(tree, dict):
        raise InputError(f"{origin}: '{prefix[:-1]}' must be a section of keys, not {tree!r}")
    hints = get_type_hints(cls)
    for name in tree:
        if name not in hints:
            near = difflib.get_close_matches(f"{prefix}{name}", _KEYS, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"{origin}: unknown key '{prefix}{name}'{hint}")
    values = {}
    for name, kind in hints.items():
        key = prefix + name
        if name not in tree:
            raise InputError(f"{origin}: '{key}' is missing; give the file a base: that leads to configs/base.yaml")
        if dataclasses.is_dataclass(kind):
            values[name] = _build(kind, tree[name], f"{key}.", origin)
        else:
            values[name] = _convert(tree[name], kind, key, origin)
    return cls(**values)


def _convert(value: Any, kind: Any, key: str, origin: str) -> Any:
    if isinstance(kind, types.UnionType) or get_origin(kind) is typing.Union:
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{origin}: {key}={value} must be one of {', '.join(map(str, get_args(kind)))}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # name=3 is a name
    if type(value) is not kind:
        raise InputError(f"{origin}: {key}={value} must be of type {kind.__name__}")
    return value
