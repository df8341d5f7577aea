"""The rules that a configuration must meet beyond the types of its values."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from src.config.kinds import KINDS
from src.config.schema import Config
from src.runtime.errors import InputError


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted keys; tuples become lists, as in YAML."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


# The keys that set parameters of a request; caprl.extra_body must hold none of these parameters.
_OWN_PARAMETERS = {"model": "caprl.model"} | dict.fromkeys(("max_tokens", "max_completion_tokens"), "caprl.max_tokens")
_OWN_PARAMETERS |= dict.fromkeys(("messages", "prompt", "stream", "n", "echo", "logprobs"), "the program")


def _is_url(text: str) -> bool:
    """Return whether a text is the http:// or https:// address of a server."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and text.isprintable() and " " not in text and not (parts.query or parts.fragment)


def _extra_body_fault(text: str | None) -> str | None:
    """Return why a text cannot join the body of a request, or None."""
    try:
        extra = {} if text is None else json.loads(text)
        json.dumps(extra, allow_nan=False)
    except (ValueError, RecursionError) as error:
        return f"must be a JSON object in quotes, as '{{\"top_k\": 1}}' ({error})"
    if not isinstance(extra, dict):
        return "must be a JSON object, as '{\"top_k\": 1}'"
    own = next((name for name in _OWN_PARAMETERS if name in extra), None)
    return own and f"must not hold {own}, which {_OWN_PARAMETERS[own]} sets"


_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "data.image_size data.workers tokenizer.min_count decoder.layers decoder.width decoder.heads log_every"
        " decoder.feed_forward eval.batch_images eval.tokens eval.every eval.beams ce.epochs ce.batch_images ce.tokens"
        " ce.micro_batches ce.captions_per_image ce.optimizer.lr ce.optimizer.grad_clip rl.group_size rl.rollouts"
        " rl.rollout_images rl.sample_images rl.passes rl.update_images rl.micro_batches rl.tokens rl.temperature"
        " rl.optimizer.lr rl.optimizer.grad_clip advantage.eps length.margin caprl.presentations caprl.timeout"
        " caprl.concurrency caprl.max_tokens",
        lambda value: value > 0,
        "must be above 0",
    ),
    (
        "decoder.dropout decoder.embedding_dropout ce.label_smoothing ce.optimizer.warmup_ratio rl.clip_eps_low"
        " rl.optimizer.warmup_ratio caprl.max_failed",
        lambda value: 0 <= value < 1,
        "must be at least 0 and below 1",
    ),
    (
        "seed stop_after_minutes kl.coef rewards.cider rewards.caprl rewards.length rewards.repetition length.least"
        " caprl.retries rl.top_k rl.clip_eps_high eval.length_penalty eval.samples ce.patience ce.save_steps"
        " ce.optimizer.weight_decay rl.optimizer.weight_decay",
        lambda value: value >= 0,
        "must not be negative",
    ),
    ("ce.optimizer.beta2 rl.optimizer.beta2", lambda value: 0 < value < 1, "must be between 0 and 1"),
)
_MULTIPLES = [("ce.batch_images", "ce.micro_batches"), ("rl.update_images", "rl.micro_batches")]
_MULTIPLES += [("decoder.width", "decoder.heads")]
_RL_MULTIPLES = [("rl.rollout_images", "rl.sample_images"), ("rl.rollout_images", "rl.update_images")]
_Rules = tuple[tuple[str, Callable[[Config], bool], str], ...]  # key, what must hold, and what to do if it does not
_RULES: _Rules = (
    ("seed", lambda c: c.seed < 2**32, "must be below 2^32"),
    ("eval.samples", lambda c: c.eval.samples != 1, "must be 0 or at least 2: diversity compares several captions"),
    ("eval.block_trigrams", lambda c: c.eval.beams > 1 or not c.eval.block_trigrams, "needs eval.beams of at least 2"),
    ("encoder.kind", lambda c: c.encoder.kind in KINDS, f"must be one of {', '.join(KINDS)}"),
    ("caprl.base_url", lambda c: _is_url(c.caprl.base_url), "must be a server's address, as http://127.0.0.1:8000/v1"),
    (
        "decoder.positions",
        lambda c: c.decoder.positions >= max(c.ce.tokens, c.rl.tokens, c.eval.tokens),
        "must be at least the longest caption: ce.tokens={ce.tokens}, rl.tokens={rl.tokens}, eval.tokens={eval.tokens}",
    ),
    (
        "name",
        lambda c: re.fullmatch(r"[\w.-]+", c.name) is not None and c.name not in (".", ".."),
        "must be one folder name of letters, digits, '.', '-' and '_'",
    ),
    (
        "data.segmentation",
        lambda c: c.data.segmentation == "characters" or c.data.language != "en",
        "is for Chinese captions, but data.language=en is set: remove one of the two",
    ),
    (
        "tokenizer.vocab",
        lambda c: c.tokenizer.kind == "word" or c.tokenizer.vocab is not None,
        "must name a vocab.txt if tokenizer.kind is wordpiece",
    ),
)
_RL_RULES: _Rules = (
    (
        "rl.group_size",
        lambda c: c.rl.group_size >= 2 or c.advantage.baseline == "greedy",
        "must be at least 2: one sample has no group to be compared with",
    ),
    (
        "advantage.scale",
        lambda c: c.advantage.baseline == "group" or c.advantage.scale == "none",
        "must be none if advantage.baseline is {advantage.baseline}: only the group baseline is divided",
    ),
    (
        "advantage.combine",
        lambda c: c.advantage.combine == "sum" or (c.advantage.baseline == "group" and c.advantage.scale != "none"),
        "needs advantage.baseline=group and advantage.scale=population or sample: it normalises every reward",
    ),
    ("rewards.cider", lambda c: bool(c.rewards.active), "or another weight must be above 0: no reward teaches nothing"),
    (
        "caprl.questions",
        lambda c: c.rewards.caprl == 0 or c.caprl.questions is not None,
        "must name a file of questions if rewards.caprl is above 0",
    ),
    (
        "caprl.model",
        lambda c: c.rewards.caprl == 0 or c.caprl.answerer != "server" or c.caprl.model is not None,
        "must be the model's name on the server if caprl.answerer is server",
    ),
    ("caprl.template", lambda c: "{prompt}" in c.caprl.template, "must hold {{prompt}}, where the question goes"),
    ("length.most", lambda c: c.length.most >= c.length.least, "must be at least length.least={length.least}"),
)


def check(config: Config) -> None:
    """Reject impossible combinations. Errors: InputError naming the key and the fix."""
    flat = flatten(dataclasses.asdict(config))

    def require(key: str, holds: bool, fix: str) -> None:
        if not holds:
            raise InputError(f"{key}={flat[key]} {fix}")

    for keys, within, fix in _NUMBERS:
        for key in keys.split():
            require(key, within(flat[key] or 0), fix)
    for stage in ("ce", "rl"):
        warmup = flat[f"{stage}.optimizer.warmup_ratio"]
        key = f"{stage}.optimizer.decay_ratio"
        require(key, warmup < flat[key] <= 1, f"must be above {stage}.optimizer.warmup_ratio={warmup} and at most 1")
    for key, part in _MULTIPLES + (_RL_MULTIPLES if config.stage != "ce" else []):
        require(key, flat[key] % flat[part] == 0, f"must be a multiple of {part}={flat[part]}")
    for key, holds, fix in _RULES + (_RL_RULES if config.stage != "ce" else ()):
        require(key, holds(config), fix.format(**vars(config)))
    kind = config.encoder.kind
    fix = f"must be one of {', '.join(KINDS[kind])} if encoder.kind is {kind}"
    require("encoder.variant", config.encoder.variant in KINDS[kind], fix)
    fault = _extra_body_fault(config.caprl.extra_body)
    require("caprl.extra_body", fault is None, fault or "")


def check_workers(config: Config, workers: int) -> None:
    """Raise InputError for a size that cannot be divided among workers, or a setting for a single worker."""
    c = config
    if c.stage == "ce":
        sizes = [("ce.batch_images", c.ce.batch_images, c.ce.micro_batches)]
    else:
        sizes = [("rl.sample_images", c.rl.sample_images, 1)]
        sizes += [("rl.update_images", c.rl.update_images, c.rl.micro_batches)]
    for key, size, parts in sizes:
        if size % (workers * parts):
            times = f" times {parts} micro_batches" if parts > 1 else ""
            raise InputError(f"{key}={size} must be a multiple of {workers} workers{times}: sizes are global")
    if workers > 1 and c.device_id is not None:
        raise InputError(f"device_id={c.device_id} is for one worker: remove it, each of {workers} takes its own")
    if c.stage != "ce" and workers > 1 and c.cider.document_frequency == "batch":
        raise InputError("cider.document_frequency=batch needs a whole rollout: use train with several workers")


def check_sizes(config: Config, images: int, vocab_size: int) -> None:
    """Raise InputError naming a size of RL that exceeds the training images or the vocabulary."""
    for key, size, most, limit in (
        ("rl.rollout_images", config.rl.rollout_images, images, "the training images"),
        ("rl.top_k", config.rl.top_k, vocab_size, "the vocabulary's size"),
    ):
        if size > most:
            raise InputError(f"{key}={size} must be at most {most}, {limit}")
