"""Evaluate a checkpoint on a split, or caption photographs with it."""

import json
import os
from pathlib import Path
from typing import Any

from src.config import Config
from src.data.dataset import Dataset, build_image_source, build_source
from src.data.image_check import check_image
from src.data.tokenizer import Tokenizer
from src.decoding.sampler import GreedyDecoder
from src.errors import InputError
from src.evaluation.caption_metrics import CaptionScores, compute_metrics, signature
from src.evaluation.report import owning_folder
from src.models.captioner import Captioner, build_captioner
from src.training.checkpoint import load_checkpoint
from src.training.run import check_tokenizer, greedy_captions, load_run_tokenizer


def load_captioner(config: Config, checkpoint: Path, *, cached: bool) -> tuple[Captioner, Tokenizer]:
    """The captioner of a checkpoint and its tokenizer. Errors: InputError where configuration and file do not fit."""
    tokenizer = load_run_tokenizer(checkpoint)
    captioner = build_captioner(config, tokenizer.allowed, cached=cached)
    check_tokenizer(checkpoint, load_checkpoint(checkpoint, captioner), tokenizer)
    return captioner, tokenizer


def evaluate(config: Config, dataset: Dataset, checkpoint: Path, split: str) -> dict[str, Any]:
    """Greedy captions of a split and their scores, written as captions_<split>.json and eval_<split>.json.

    Returns what eval_<split>.json holds. Captions are written before they are scored, so that they are kept.
    """
    captioner, tokenizer = load_captioner(config, checkpoint, cached=not config.encoder.trainable)
    source = build_source(config, dataset.records[split], captioner.encoder)
    greedy = GreedyDecoder(captioner, tokenizer.specials, config.eval.tokens)
    texts, _ = greedy_captions(greedy, tokenizer, source, len(dataset.records[split]), config.eval.batch_images)
    captions = {record.image_id: text for record, text in zip(dataset.records[split], texts)}
    folder = owning_folder(config, checkpoint)
    rows = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    write_json(folder / f"captions_{split}.json", rows)
    result = scored(captions, dataset, split, "greedy")
    write_json(folder / f"eval_{split}.json", result)
    return result


def scored(captions: dict[int, str], dataset: Dataset, split: str, decoding: str) -> dict[str, Any]:
    """Metrics, signature and number of images of one caption per image of a split."""
    scores: CaptionScores = compute_metrics(captions, dataset.by_image_id(split), ptb_done=True)
    line = signature(document_frequencies=split, decoding=decoding, num_images=len(captions))
    return {"metrics": scores.metrics, "signature": line, "num_images": len(captions)}


def caption_images(config: Config, checkpoint: Path, paths: list[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Greedy captions of image files, and the reason for each that cannot be read."""
    reasons = {path: check_image(path) for path in paths}
    broken = {path: reason for path, reason in reasons.items() if reason is not None}
    readable = [path for path in paths if path not in broken]
    if not readable:
        return {}, broken
    captioner, tokenizer = load_captioner(config, checkpoint, cached=False)
    greedy = GreedyDecoder(captioner, tokenizer.specials, config.eval.tokens)
    source = build_image_source(config, readable)
    texts, _ = greedy_captions(greedy, tokenizer, source, len(readable), min(len(readable), config.eval.batch_images))
    return dict(zip(readable, texts)), broken


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent. Errors: InputError naming the file."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output_root") from None
