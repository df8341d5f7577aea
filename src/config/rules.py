"""The rules that a configuration must meet beyond the types of its values."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from src.config.kinds import KINDS, LORA_TARGETS
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
        " policy.pool lora.alpha eval.temperature"
        " rl.optimizer.lr rl.optimizer.grad_clip advantage.eps length.margin caprl.presentations caprl.timeout"
        " caprl.concurrency caprl.max_tokens",
        lambda value: value > 0,
        "must be above 0",
    ),
    (
        "decoder.dropout decoder.embedding_dropout lora.dropout ce.label_smoothing ce.optimizer.warmup_ratio"
        " rl.clip_eps_low rl.optimizer.warmup_ratio caprl.max_failed",
        lambda value: 0 <= value < 1,
        "must be at least 0 and below 1",
    ),
    (
        "seed stop_after_minutes ce.optimizer.projector_lr ce.optimizer.adapter_lr rl.optimizer.projector_lr"
        " rl.optimizer.adapter_lr policy.end_check policy.chunk_rows lora.rank eval.top_k"
        " kl.coef rewards.cider rewards.caprl rewards.length rewards.repetition length.least"
        " caprl.retries rl.top_k rl.clip_eps_high eval.length_penalty eval.samples ce.patience ce.save_steps"
        " ce.optimizer.weight_decay rl.optimizer.weight_decay",
        lambda value: value >= 0,
        "must not be negative",
    ),
    ("rl.top_p eval.top_p", lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    ("ce.optimizer.beta2 rl.optimizer.beta2", lambda value: 0 < value < 1, "must be between 0 and 1"),
)
_MULTIPLES = [("ce.batch_images", "ce.micro_batches"), ("rl.update_images", "rl.micro_batches")]
_MULTIPLES += [("decoder.width", "decoder.heads")]
_RL_MULTIPLES = [("rl.rollout_images", "rl.sample_images"), ("rl.rollout_images", "rl.update_images")]


def _faults(c: Config, flat: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the keys with impossible values, each with the fix."""
    for keys, within, fix in _NUMBERS:
        yield from ((key, fix) for key in keys.split() if not within(flat[key] or 0))
    for key, part in _MULTIPLES + (_RL_MULTIPLES if c.stage != "ce" else []):
        if flat[key] % flat[part]:
            yield key, f"must be a multiple of {part}={flat[part]}"
    for stage in ("ce", "rl"):
        key, warmup = f"{stage}.optimizer.decay_ratio", flat[f"{stage}.optimizer.warmup_ratio"]
        if not warmup < flat[key] <= 1:
            yield key, f"must be above {stage}.optimizer.warmup_ratio={warmup} and at most 1"
    if c.seed >= 2**32:
        yield "seed", "must be below 2^32"
    if c.eval.samples == 1:
        yield "eval.samples", "must be 0 or at least 2: diversity compares several captions"
    if c.eval.block_trigrams and c.eval.beams == 1:
        yield "eval.block_trigrams", "needs eval.beams of at least 2: greedy decoding blocks nothing"
    if c.data.resize_after_normalize and not c.has_convolutions:
        yield "data.resize_after_normalize", "must be false: it is the original's order, for ResNet-50"
    yield from _policy_faults(c)
    if c.encoder.kind not in KINDS:
        yield "encoder.kind", f"must be one of {', '.join(KINDS)}"
    elif KINDS[c.encoder.kind] and c.encoder.variant not in KINDS[c.encoder.kind]:
        variants = ", ".join(KINDS[c.encoder.kind])
        yield "encoder.variant", f"must be one of {variants} if encoder.kind is {c.encoder.kind}"
    if c.encoder.kind == "vit" and c.encoder.checkpoint is None:
        yield "encoder.checkpoint", "must name the folder of a vision tower if encoder.kind is vit"
    longest = max(c.ce.tokens, c.rl.tokens, c.eval.tokens)
    if c.decoder.positions < longest and not c.policy.is_pretrained:
        yield "decoder.positions", f"must be at least {longest}, the longest caption"
    if not re.fullmatch(r"[\w.-]+", c.name) or c.name in (".", ".."):
        yield "name", "must be one folder name of letters, digits, '.', '-' and '_'"
    if c.data.segmentation != "characters" and c.data.language == "en":
        yield "data.segmentation", "is for Chinese captions, but data.language=en is set: remove one of the two"
    if c.tokenizer.kind != "word" and c.tokenizer.vocab is None:
        yield "tokenizer.vocab", "must name a vocab.txt if tokenizer.kind is wordpiece"
    if not _is_url(c.caprl.base_url):
        yield "caprl.base_url", "must be a server's address, as http://127.0.0.1:8000/v1"
    yield "caprl.extra_body", _extra_body_fault(c.caprl.extra_body)
    if c.stage == "ce":
        return
    baseline, scale = c.advantage.baseline, c.advantage.scale
    if c.rl.group_size < 2 and baseline != "greedy":
        yield "rl.group_size", "must be at least 2: one sample has no group to be compared with"
    if baseline != "group" and scale != "none":
        yield "advantage.scale", f"must be none if advantage.baseline is {baseline}: only the group baseline is divided"
    if c.advantage.combine != "sum" and (baseline != "group" or scale == "none"):
        fix = "needs advantage.baseline=group and advantage.scale=population or sample: it normalises every reward"
        yield "advantage.combine", fix
    if not c.rewards.active:
        yield "rewards.cider", "or another weight must be above 0: without a reward there is nothing to learn"
    if c.rewards.caprl and c.caprl.questions is None:
        yield "caprl.questions", "must name a file of questions if rewards.caprl is above 0"
    if c.rewards.caprl and c.caprl.answerer == "server" and c.caprl.model is None:
        yield "caprl.model", "must be the model's name on the server if caprl.answerer is server"
    if "{prompt}" not in c.caprl.template:
        yield "caprl.template", "must hold {prompt}, where the question goes"
    if c.length.most < c.length.least:
        yield "length.most", f"must be at least length.least={c.length.least}"


def _policy_faults(c: Config) -> Iterator[tuple[str, str | None]]:
    """Yield the keys of the kind of policy that are impossible."""
    kind, path = c.policy.kind, c.policy.path
    if c.policy.is_pretrained and path is None:
        yield "policy.path", f"must name the folder of a pretrained model if policy.kind is {kind}"
    if not c.policy.is_pretrained:
        if path is not None:
            yield "policy.path", "is for a pretrained model: set policy.kind=prefix_lm or qwen2_5_vl"
        if c.lora.rank:
            yield "lora.rank", "is for a pretrained model: set policy.kind=prefix_lm or qwen2_5_vl"
        if c.stage != "ce" and c.init_config is None and c.init_checkpoint is None:
            yield "init_config", "must name the configuration of CE: a captioner has no pretrained captions"
    elif c.mode != "graph":
        yield "mode", f"must be graph if policy.kind is {kind}"
    targets = c.lora.targets.split(",")
    if c.lora.rank and not set(targets) <= set(LORA_TARGETS):
        yield "lora.targets", f"must be a comma-separated list of {', '.join(LORA_TARGETS)}"


def check(config: Config) -> None:
    """Reject impossible combinations. Errors: InputError naming the key and the fix."""
    flat = flatten(dataclasses.asdict(config))
    for key, fix in _faults(config, flat):
        if fix:
            raise InputError(f"{key}={flat[key]} {fix}")


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
