"""The plan of a comparison: which systems, how many seeds, which budget."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from src.config_load import load_config
from src.errors import InputError

_KEYS = {"ce": str, "systems": dict, "captions": int, "updates": int, "samples": int, "seeds": int, "resamples": int}


@dataclass(frozen=True)
class Plan:
    """ce and systems: configuration files. captions: budget of each system and seed, in decoded captions; updates: a
    second budget, in optimiser updates, 0 for none. samples: captions per image for diversity. resamples: of the
    bootstrap. overrides: key=value for every stage.
    """

    ce: Path
    systems: dict[str, Path]
    captions: int
    updates: int
    samples: int
    seeds: tuple[int, ...]
    resamples: int
    overrides: tuple[str, ...]


def load_plan(path: Path, overrides: list[str]) -> Plan:
    """Read a comparison's YAML file; `seeds`, `captions` and `updates` may be overridden, other keys go to every stage.

    Seeds count up from the configured one. Errors: InputError naming the file and the key.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the comparison {path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    rest = []
    for override in overrides:
        key, _, text = override.partition("=")
        if key in ("seeds", "captions", "updates"):
            tree[key] = int(text) if text.isdecimal() else text
        else:
            rest.append(override)
    for key in tree:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key '{key}'; a comparison has {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if type(tree.get(key)) is not kind:
            raise InputError(f"{path}: {key}={tree.get(key)} must be of type {kind.__name__}")
    for key, least in (("captions", 1), ("seeds", 1), ("updates", 0), ("samples", 2), ("resamples", 1)):
        if tree[key] < least:
            raise InputError(f"{path}: {key}={tree[key]} must be at least {least}")
    first = load_config(path.parent / tree["ce"], rest).seed
    return Plan(
        ce=path.parent / tree["ce"],
        systems={name: path.parent / file for name, file in tree["systems"].items()},
        captions=tree["captions"],
        updates=tree["updates"],
        samples=tree["samples"],
        seeds=tuple(range(first, first + tree["seeds"])),
        resamples=tree["resamples"],
        overrides=tuple(rest),
    )
