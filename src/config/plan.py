"""The plan of a comparison: its systems, seeds and budgets."""

import re
from dataclasses import dataclass
from pathlib import Path

from src.config.load import current_keys, load_config, read_yaml, unknown_key
from src.runtime.errors import InputError

# The smallest value of each number of a plan. The command line may override these numbers.
_LEAST = {"captions": 1, "updates": 0, "validations": 1, "samples": 2, "seeds": 1, "resamples": 1}
_KEYS = ("ce", "systems", *_LEAST)
_SET_BY_THE_PLAN = {
    "name": "every run has its own name",
    **dict.fromkeys(("init_checkpoint", "init_config"), "every system starts from the comparison's CE"),
    "rl.rollouts": "captions=N sets the budget",
    "eval.samples": "samples=N sets it",
}


@dataclass(frozen=True)
class Plan:
    """A comparison of systems.

    ce, systems: configuration files. captions: the budget of each system and seed, in decoded captions. updates: a
    second budget, in optimiser updates, 0 for none. validations: of each run, evenly spaced. samples: captions per
    image for diversity. resamples: of the bootstrap. overrides: key=value for every stage.
    """

    ce: Path
    systems: dict[str, Path]
    captions: int
    updates: int
    validations: int
    samples: int
    seeds: tuple[int, ...]
    resamples: int
    overrides: tuple[str, ...]


def load_plan(path: Path, overrides: list[str]) -> Plan:
    """Read a comparison's YAML file. Overrides of its numbers change the plan, all others go to every stage.

    Seeds count up from the configured one. Errors: InputError naming the file and the key.
    """
    tree = read_yaml(path)
    rest = []
    for override in current_keys(overrides):
        key, _, text = override.partition("=")
        if key in _LEAST:
            tree[key] = int(text) if text.isdecimal() else text
        elif key in _SET_BY_THE_PLAN:
            raise InputError(f"{override} cannot be set for a comparison: {_SET_BY_THE_PLAN[key]}")
        else:
            rest.append(override)
    _check(tree, path)
    ce = path.parent / tree["ce"]
    first = load_config(ce, rest).seed
    plan = Plan(
        **{key: tree[key] for key in _LEAST if key != "seeds"},
        ce=ce,
        systems={name: path.parent / file for name, file in tree["systems"].items()},
        seeds=tuple(range(first, first + tree["seeds"])),
        overrides=tuple(rest),
    )
    for name, file in plan.systems.items():
        config = load_config(file, rest)
        if config.stage == "ce":
            raise InputError(f"{path}: systems.{name}={file} trains with cross-entropy; use a configuration of RL")
        start = file.parent / (config.init_config or "")
        if start.resolve() != ce.resolve():
            raise InputError(f"{path}: {file} starts from {start}, not from {ce}: change its init_config")
    return plan


def _check(tree: dict, path: Path) -> None:
    for key in tree:
        if key not in _KEYS:
            raise unknown_key(str(key), _KEYS, path)
    if not isinstance(tree.get("ce"), str):
        raise InputError(f"{path}: ce={tree.get('ce')} must name the configuration of cross-entropy")
    systems = tree.get("systems")
    named = isinstance(systems, dict) and all(isinstance(word, str) for pair in systems.items() for word in pair)
    if not named or not systems or "ce" in systems:
        raise InputError(f"{path}: systems={systems} must map each system but ce to its file, as 'grpo: grpo.yaml'")
    for name in systems:
        if not re.fullmatch(r"\w+", name):
            raise InputError(f"{path}: systems.{name}: a name has letters, digits and _")
    for key, least in _LEAST.items():
        if type(tree.get(key)) is not int or tree[key] < least:
            raise InputError(f"{path}: {key}={tree.get(key)} must be a whole number of at least {least}")
