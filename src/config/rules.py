"""What a configuration must fulfil beyond the types of its values."""

import dataclasses
import json
import re
from typing import Any
from urllib.parse import urlsplit

from src.config.kinds import KINDS
from src.config.schema import Config
from src.runtime.errors import InputError


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; tuples become lists, as YAML has them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


# Parameters of a request that are set elsewhere, or by the program; of these caprl.extra_body must hold none.
_OWN_PARAMETERS = {"model": "caprl.model"}
_OWN_PARAMETERS |= dict.fromkeys(("max_tokens", "max_completion_tokens"), "caprl.max_tokens")
_OWN_PARAMETERS |= dict.fromkeys(("messages", "prompt", "stream", "n", "echo", "logprobs"), "the program")


def _is_url(text: str) -> bool:
    """Whether a text is the http:// or https:// address of a server."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and text.isprintable() and " " not in text and not (parts.query or parts.fragment)


def _extra_body_fault(text: str | None) -> str | None:
    """Why a text cannot join the body of a request."""
    try:
        extra = {} if text is None else json.loads(text)
        json.dumps(extra, allow_nan=False)
    except (ValueError, RecursionError) as error:
        return f"must be a JSON object in quotes, as '{{\"top_k\": 1}}' ({error})"
    if not isinstance(extra, dict):
        return "must be a JSON object, as '{\"top_k\": 1}'"
    own = next((name for name in _OWN_PARAMETERS if name in extra), None)
    return own and f"must not hold {own}, which {_OWN_PARAMETERS[own]} sets"


def check(config: Config) -> None:
    """Refuse impossible combinations; each message names the key and the mend."""
    c = config
    positive = [
        "data.image_size",
        "data.workers",
        "tokenizer.min_count",
        "decoder.layers",
        "decoder.width",
        "decoder.heads",
        "decoder.feed_forward",
        "eval.batch_images",
        "eval.tokens",
        "eval.every",
        "eval.beams",
        "log_every",
        "ce.epochs",
        "ce.batch_images",
        "ce.micro_batches",
        "ce.captions_per_image",
        "ce.tokens",
        "rl.group_size",
        "rl.rollouts",
        "rl.rollout_images",
        "rl.sample_images",
        "rl.passes",
        "rl.update_images",
        "rl.micro_batches",
        "rl.tokens",
        "rl.temperature",
        "ce.optimizer.lr",
        "rl.optimizer.lr",
        "ce.optimizer.grad_clip",
        "rl.optimizer.grad_clip",
        "advantage.eps",
        "length.margin",
        "caprl.presentations",
        "caprl.timeout",
        "caprl.concurrency",
        "caprl.max_tokens",
    ]
    shares = [
        "decoder.dropout",
        "decoder.embedding_dropout",
        "ce.label_smoothing",
        "ce.optimizer.warmup_ratio",
        "rl.optimizer.warmup_ratio",
        "rl.clip_eps_low",
        "caprl.max_failed",
    ]
    not_negative = [
        "seed",
        "stop_after_minutes",
        "kl.coef",
        *(f"rewards.{field.name}" for field in dataclasses.fields(c.rewards)),
        "length.least",
        "caprl.retries",
        "rl.top_k",
        "rl.clip_eps_high",
        "eval.length_penalty",
        "eval.samples",
        "ce.patience",
        "ce.save_steps",
        "ce.optimizer.weight_decay",
        "rl.optimizer.weight_decay",
    ]
    flat = flatten(dataclasses.asdict(c))
    rules = [(key, flat[key] > 0, "must be above 0") for key in positive]
    rules += [(key, 0 <= (flat[key] or 0) < 1, "must be at least 0 and below 1") for key in shares]
    rules += [(key, flat[key] >= 0, "must not be negative") for key in not_negative]
    rules += [
        (
            f"{stage}.optimizer.decay_ratio",
            section.optimizer.warmup_ratio < section.optimizer.decay_ratio <= 1,
            f"must be above {stage}.optimizer.warmup_ratio={section.optimizer.warmup_ratio} and at most 1",
        )
        for stage, section in (("ce", c.ce), ("rl", c.rl))
    ]
    rules += [
        (f"{stage}.optimizer.beta2", 0 < section.optimizer.beta2 < 1, "must be between 0 and 1")
        for stage, section in (("ce", c.ce), ("rl", c.rl))
    ]
    rules += [
        ("seed", c.seed < 2**32, "must be below 2^32"),
        ("eval.samples", c.eval.samples != 1, "must be 0 or at least 2: diversity is about several captions"),
        (
            "eval.block_trigrams",
            not c.eval.block_trigrams or c.eval.beams > 1,
            "needs eval.beams of at least 2: greedy decoding blocks nothing",
        ),
    ]
    variants = KINDS.get(c.encoder.kind, ())
    rules += [
        ("encoder.kind", c.encoder.kind in KINDS, f"must be one of {', '.join(KINDS)}"),
        (
            "encoder.variant",
            c.encoder.variant in variants,
            f"must be one of {', '.join(variants)} where encoder.kind is {c.encoder.kind}",
        ),
    ]
    extra_body_fault = _extra_body_fault(c.caprl.extra_body)
    rules += [
        ("caprl.base_url", _is_url(c.caprl.base_url), "must be a server's address, as http://127.0.0.1:8000/v1"),
        ("caprl.extra_body", extra_body_fault is None, extra_body_fault or ""),
    ]
    longest = max(c.ce.tokens, c.rl.tokens, c.eval.tokens)
    rules += [
        (
            "ce.micro_batches",
            c.ce.batch_images % c.ce.micro_batches == 0,
            f"must divide ce.batch_images={c.ce.batch_images}",
        ),
        (
            "rl.micro_batches",
            c.rl.update_images % c.rl.micro_batches == 0,
            f"must divide rl.update_images={c.rl.update_images}",
        ),
        ("decoder.heads", c.decoder.width % c.decoder.heads == 0, f"must divide decoder.width={c.decoder.width}"),
        ("decoder.positions", c.decoder.positions >= longest, f"must be at least {longest}, the longest caption"),
        (
            "name",
            re.fullmatch(r"[\w.-]+", c.name) is not None and c.name not in (".", ".."),
            "must be one folder name of letters, digits, '.', '-' and '_'",
        ),
        (
            "data.segmentation",
            c.data.segmentation == "characters" or c.data.language != "en",
            "is for Chinese captions, and data.language=en is given: leave one of the two out",
        ),
        (
            "tokenizer.vocab",
            c.tokenizer.kind == "word" or c.tokenizer.vocab is not None,
            "must name a vocab.txt where tokenizer.kind is wordpiece",
        ),
    ]
    if c.stage != "ce":
        g = c.rl
        rules += [
            (
                "rl.group_size",
                g.group_size >= 2 or c.advantage.baseline == "greedy",
                "must be at least 2: one sample has no group to be compared with",
            ),
            (
                "rl.rollout_images",
                g.rollout_images % g.sample_images == 0,
                f"must be a multiple of rl.sample_images={g.sample_images}",
            ),
            (
                "rl.rollout_images",
                g.rollout_images % g.update_images == 0,
                f"must be a multiple of rl.update_images={g.update_images}",
            ),
            (
                "advantage.scale",
                c.advantage.baseline == "group" or c.advantage.scale == "none",
                f"must be none where advantage.baseline is {c.advantage.baseline}: only the group baseline is divided",
            ),
            (
                "advantage.combine",
                c.advantage.combine == "sum" or (c.advantage.baseline == "group" and c.advantage.scale != "none"),
                "needs advantage.baseline=group, and advantage.scale=population or sample: it normalises every reward",
            ),
            (
                "rewards.cider",
                bool(c.rewards.active),
                "or another weight must be above 0: without a reward there is nothing to learn",
            ),
            (
                "caprl.questions",
                c.rewards.caprl == 0 or c.caprl.questions is not None,
                "must name a file of questions where rewards.caprl is above 0",
            ),
            (
                "caprl.model",
                c.rewards.caprl == 0 or c.caprl.answerer != "server" or c.caprl.model is not None,
                "must be the model's name on the server where caprl.answerer is server",
            ),
            ("caprl.template", "{prompt}" in c.caprl.template, "must hold {prompt}, where the question goes"),
            ("length.most", c.length.most >= c.length.least, f"must be at least length.least={c.length.least}"),
        ]
    for key, holds, mend in rules:
        if not holds:
            raise InputError(f"{key}={flat[key]} {mend}")


def check_workers(config: Config, workers: int) -> None:
    """InputError for a size that cannot be divided among workers, or a setting that only one worker can have."""
    c = config
    if c.stage == "ce":
        sizes = [("ce.batch_images", c.ce.batch_images, c.ce.micro_batches)]
    else:
        sizes = [("rl.sample_images", c.rl.sample_images, 1)]
        sizes += [("rl.update_images", c.rl.update_images, c.rl.micro_batches)]
    for key, size, parts in sizes:
        if size % (workers * parts):
            times = f" times {parts} micro_batches" if parts > 1 else ""
            raise InputError(f"{key}={size} must be a multiple of {workers} workers{times}: sizes are of all together")
    if workers > 1 and c.device_id is not None:
        raise InputError(f"device_id={c.device_id} is for one worker: leave it out, each of {workers} takes its own")
    if c.stage != "ce" and workers > 1 and c.cider.document_frequency == "batch":
        raise InputError("cider.document_frequency=batch is of a whole rollout; several workers need train")


def check_sizes(config: Config, images: int, vocab_size: int) -> None:
    """InputError naming a size of RL that is larger than the training images, or the vocabulary, allow."""
    for key, size, most, what in (
        ("rl.rollout_images", config.rl.rollout_images, images, "the training images"),
        ("rl.top_k", config.rl.top_k, vocab_size, "the vocabulary's size"),
    ):
        if size > most:
            raise InputError(f"{key}={size} must be at most {most}, {what}")
