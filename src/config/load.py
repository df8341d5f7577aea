"""Reading a configuration: a YAML file, its chain of `base:` files, and `key=value` from the command line.

An unknown key, a wrong type or an impossible combination is an InputError that names the key.
"""

import argparse
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from src.config.rules import check, flatten
from src.config.schema import FILE_KEYS, INNER_FILE_KEYS, Config
from src.runtime.errors import InputError, one_line
from src.runtime.files import ROOT, from_root, given_file, to_root, whole_file

# Keys that change where or how a run computes, not what: a run may resume with other values of them.
NOT_COMPARED = (
    *("output_root", "name", "device", "device_id", "fresh", "stop_after_minutes", "log_every", "data.workers"),
    *("data.mindrecord", "init_checkpoint"),  # of init_checkpoint, a digest of its weights is compared
    *("eval.beams", "eval.length_penalty", "eval.block_trigrams", "eval.samples"),
    *("eval.temperature", "eval.top_k", "eval.top_p", "policy.end_check"),
    # These decide which questions get no answer, never what an answer is.
    *("caprl.max_failed", "caprl.base_url", "caprl.timeout", "caprl.retries", "caprl.concurrency", "caprl.max_tokens"),
)
# The resolved configuration of CE omits these sections.
RL_SECTIONS = ("rl", "advantage", "kl", "loss", "rewards", "cider", "caprl", "length", "init_config")
_BASE = ROOT / "configs/base.yaml"


def config_parser(description: str, prog: str | None = None, **config: Any) -> argparse.ArgumentParser:
    """Return a parser for `--config FILE [key=value ...]`. config: settings of --config, which is required without."""
    parser = argparse.ArgumentParser(prog, description=description)
    config = config or {"required": True, "help": "a YAML file of configs/"}
    parser.add_argument("--config", type=given_file, **config)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    return parser


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, its chain of `base:` files and `key=value` overrides.

    Errors: InputError naming the file or key, with the nearest valid key if one is unknown.
    """
    path = Path(path)
    values = _read(path, seen=())
    if path.name == "config.yaml":  # of a run or an exported folder: an older version wrote fewer keys
        values = _read(_BASE, seen=()) | values
    values |= _changed(values, FILE_KEYS, from_root)
    configured_seed = values.get("seed")
    for given, override in zip(overrides, current_keys(overrides)):
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"'{given}' is not of the form key=value")
        values[key] = _checked(_parse(text, key), key, f"command line ({given})")
    values |= _changed(values, (*FILE_KEYS, *INNER_FILE_KEYS), os.path.expanduser)
    if values.get("name") is None:
        suffix = f"-seed{values['seed']}" if values.get("seed") != configured_seed else ""
        stem = path.stem if values.get("policy.kind") == "captioner" else f"{path.absolute().parent.name}-{path.stem}"
        values["name"] = f"{values.get('data.dataset')}-{stem}{suffix}"
    missing = next((key for key in _KEYS if key not in values), None)
    if missing is not None:
        raise InputError(f"{path}: '{missing}' is missing; give the file a base: that leads to configs/base.yaml")
    config = _build(Config, values, "")
    check(config)
    _refuse_tokenizer(config, values)
    return config


def _refuse_tokenizer(config: Config, values: dict[str, Any]) -> None:
    """Raise InputError if a tokenizer is chosen for a pretrained model, which brings its own."""
    base = _read(_BASE, seen=()) if config.policy.is_pretrained else {}
    for key, default in base.items():
        if key.startswith("tokenizer.") and values[key] not in (default, from_root(str(default))):
            raise InputError(
                f"{key}={values[key]} cannot be set with policy.path, which brings its own tokenizer; remove it"
            )


def current_keys(texts: Iterable[str], origin: str = "command line") -> list[str]:
    """Replace `grpo`, the former name of the section `rl`, in overrides or keys. Errors: InputError if both occur."""
    texts = list(texts)
    given = {section for text in texts for section in ("grpo", "rl") if re.match(rf"{section}\b", text)}
    if len(given) == 2:
        raise InputError(f"{origin}: grpo.* and rl.* are both given: grpo is the former name of rl; use rl.* only")
    return [re.sub(r"^grpo\b", "rl", text) for text in texts]


def is_setting(word: str) -> bool:
    """Return whether a word among file names is key=value: its key is or looks like one, and no file has that name."""
    key, separator, _ = word.partition("=")
    looks_like_one = key in _KEYS or re.fullmatch(r"[a-z]+(\.[a-z_0-9]+)+", key) is not None
    return bool(separator) and looks_like_one and not os.path.lexists(word)


def stage_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides for the previous stage: all except those that concern only the last one."""
    own = ("name", "fresh", "init_checkpoint")
    return [override for override in overrides if override.partition("=")[0] not in own]


def whole(config: Config) -> dict[str, Any]:
    """Return every key as nested dictionaries, which `load_config` reads without a base."""
    tree = dataclasses.asdict(config)
    for key, path in _changed(flatten(tree), FILE_KEYS, to_root).items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = path
    return tree


def resolved(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, without the sections that its stage does not read."""
    tree = whole(config)
    unread = (RL_SECTIONS if config.stage == "ce" else ("ce",)) + (() if config.data.dataset == "demo" else ("demo",))
    # The settings of a reward are in the section of its name.
    unread += tuple(name for name, weight in tree["rewards"].items() if weight == 0)
    return {key: value for key, value in tree.items() if key not in unread}


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the dotted keys, except NOT_COMPARED, whose values differ between two resolved configurations.

    A key that one of them lacks has the value of configs/base.yaml: an older version wrote it, or its stage does not
    read that section.
    """
    trees = []
    for tree in map(flatten, (old, new)):
        values = _read(_BASE, seen=()) | dict(zip(current_keys(tree, "config.yaml"), tree.values()))
        trees.append(values | _changed(values, FILE_KEYS, lambda path: os.path.normpath(ROOT / path)))
    keys = sorted(set().union(*trees) - set(NOT_COMPARED))
    missing = object()
    return [key for key in keys if trees[0].get(key, missing) != trees[1].get(key, missing)]


def write_tree(tree: dict[str, Any], path: Path) -> None:
    """Write a configuration as YAML."""
    with whole_file(path) as partial:
        partial.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as a string; this reads it as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values. Errors: InputError naming the file."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    return tree


def unknown_key(key: str, known: Collection[str], origin: str | Path) -> InputError:
    """Return the error for an unknown key, with the nearest known one or, if there are few, all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    every = f"; the keys are {', '.join(known)}" if len(known) < 20 else ""
    return InputError(f"{origin}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else every))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read the values of dotted keys from a file and its bases."""
    if path.resolve() in seen:
        raise InputError(f"{path}: its base: leads back to itself")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if not isinstance(base, str | None):
        raise InputError(f"{path}: base must be the path of one YAML file, relative to this one")
    flat = flatten(tree)
    given = dict(zip(current_keys(flat, str(path)), flat.values()))
    values = {} if base is None else _read(path.parent / base, (*seen, path.resolve()))
    return values | {key: _checked(value, key, str(path)) for key, value in given.items()}


def _changed(values: dict[str, Any], keys: Sequence[str], change: Callable[[str], str]) -> dict[str, str]:
    """Change the texts among the values of `keys`."""
    return {key: change(values[key]) for key in keys if isinstance(values.get(key), str)}


def _parse(text: str, key: str) -> Any:
    """Parse a value of the command line: YAML, but a name or path is taken as is, unless it is null or in quotes."""
    nothing = ("", "null") if _KEYS.get(key) is str else ("", "null", "~")  # ~: the home folder, where null is no value
    if _KEYS.get(key) in (str, str | None) and text not in nothing and text[0] not in "'\"":
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise InputError(f"{key}={text}: the value is not valid YAML; put it in quotes") from None


def _keys(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every dotted key."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        keys |= _keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else {prefix + name: kind}
    return keys


_KEYS = _keys(Config)


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls).items()
    is_section = dataclasses.is_dataclass
    return cls(**{n: _build(k, values, f"{prefix}{n}.") if is_section(k) else values[prefix + n] for n, k in hints})


def _checked(value: Any, key: str, origin: str) -> Any:
    """Return the value of a key in the type that the key has. Errors: InputError naming the origin and the key."""
    if key not in _KEYS:
        if any(known.startswith(f"{key}.") for known in _KEYS):
            raise InputError(f"{origin}: '{key}' must be a section of keys, not {value!r}")
        raise unknown_key(key, _KEYS, origin)
    kind = _KEYS[key]
    if key == "name" and value is None:
        return None  # load_config derives it from the file's
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
