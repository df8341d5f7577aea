"""Scores of captions by pycocoevalcap, over words as src/data/words.py makes them, and the line that says how."""

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from src.data.record import ImageId, with_known_ids
from src.data.words import ENGLISH, Words
from src.evaluation.java_metrics import score_meteor, score_spice, spice_has_models
from src.runtime.environment import say_once
from src.runtime.errors import InputError
from src.runtime.progress import Progress

_WANTED = 'a list of {"image_id": int or str, "caption": str}'
ONE_IMAGE = "CIDEr is 0.0: it weighs words by the logarithm of the number of images, and there is one image, log 1 = 0"

Truths = Mapping[ImageId, list[str]]
Scores = tuple[dict[str, float], dict[str, np.ndarray]]  # metrics and segments of one scorer


class CaptionScores(NamedTuple):
    """`metrics`: Bleu_1..4, METEOR, ROUGE_L, CIDEr, SPICE on pycocoevalcap's scale.

    `segments`: what src.evaluation.bootstrap computes them from, one row per image in the order of the captions.
    `left_out`: metrics that failed, and why. `notes`: what a reader of the scores must know, a line each.
    """

    metrics: dict[str, float]
    segments: dict[str, np.ndarray]
    left_out: dict[str, str]
    notes: list[str]


def compute_metrics(
    captions: Mapping[ImageId, str],
    ground_truths: Mapping[ImageId, Sequence[str]],
    *,
    words: Words = ENGLISH,
    tokenized_truths: bool = False,
) -> CaptionScores:
    """Score one caption per image id against its ground truths; document frequencies are those of all `ground_truths`.

    tokenized_truths: the ground truths (not the captions) come from `words` already. What fails is left out, with one
    line on stderr. InputError if a caption has no ground truths, if English captions cannot be tokenised without
    Java, or if every metric fails. METEOR takes 10 s to load.
    """
    documents, results = tokenized(captions, ground_truths, words, tokenized_truths=tokenized_truths)
    truths = {image_id: documents[image_id] for image_id in results}
    scorers = _scorers(words, documents)
    metrics: dict[str, float] = {}
    segments: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    with Progress("metrics", len(scorers), "metric") as bar:
        for name, scorer in scorers.items():
            try:
                found, statistics = scorer(truths, results)
            except Exception as error:  # whatever one scorer runs into, the others are worth hours of training
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                left_out[name] = kind + " ".join(str(error).split())
                print(f"{name} is left out: {left_out[name]}", file=sys.stderr)
            else:
                metrics |= found
                segments |= statistics
            bar.update(note=name)
    if not metrics:
        raise InputError(f"no metric could be computed, first {next(iter(left_out.values()))}")
    notes = ["METEOR and SPICE are left out: they are made for English"] if words.language == "zh" else []
    notes += [ONE_IMAGE] if len(documents) == 1 and "CIDEr" in metrics else []
    for note in notes:
        say_once(note)
    return CaptionScores(metrics, segments, left_out, notes)


def tokenized(
    captions: Mapping[ImageId, str],
    ground_truths: Mapping[ImageId, Sequence[str]],
    words: Words = ENGLISH,
    *,
    tokenized_truths: bool = False,
) -> tuple[dict[ImageId, list[str]], dict[ImageId, list[str]]]:
    """All ground truths, and the captions, as pycocoevalcap's scorers take them."""
    _check_images(captions, ground_truths)
    truths = {image_id: list(rows) for image_id, rows in ground_truths.items()}
    truths = truths if tokenized_truths else words.tokenize_images(truths)
    lines = words.tokenize(list(captions.values()))
    return truths, {image_id: [line] for image_id, line in zip(captions, lines, strict=True)}


def signature(*, tokens: str, document_frequencies: str, decoding: str, num_images: int, of: int | None = None) -> str:
    """How the scores of `compute_metrics` were made, in SacreBLEU's manner.

    tokens: Words.name. document_frequencies: the name of the evaluated split, whose ground truths give CIDEr's
    document frequencies. decoding: for example "greedy", "beam3", or "file" for captions made elsewhere.
    of: images of the whole split.
    """
    images = f"{num_images}" if of in (None, num_images) else f"{num_images}/{of}"
    parts = f"tok:{tokens}|df:{document_frequencies}|eos:no|decoding:{decoding}|images:{images}"
    return f"{parts}|pycocoevalcap:{version('pycocoevalcap')}"


def load_captions(path: str | Path) -> dict[ImageId, str]:
    """Read a COCO results file: a list of {"image_id": int or str, "caption": str}; other keys are not read.

    InputError naming the file and the first wrong entry. An empty caption is a caption.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a COCO results file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); want {_WANTED}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: want {_WANTED} with at least one entry")
    captions: dict[ImageId, str] = {}
    for number, entry in enumerate(entries):
        image_id: Any = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) not in (int, str):  # not isinstance: True is an int
            raise InputError(f'{path}: entry {number} has no "image_id"; want {{"image_id": 1, "caption": ""}}')
        if not isinstance(entry.get("caption"), str):
            raise InputError(f'{path}: entry {number} (image_id {image_id}) has no string "caption"; add it')
        if image_id in captions:
            raise InputError(f"{path}: entry {number} repeats image_id {image_id}; keep one caption per image")
        captions[image_id] = entry["caption"]
    return captions


def load_split_captions(path: Path, image_ids: Collection[ImageId], split: str) -> dict[ImageId, str]:
    """The captions of a results file by the image ids of a split; where some images have none, stderr says so.

    Errors: InputError naming the file, and an image that is not in the split.
    """
    captions = with_known_ids(load_captions(path), image_ids, path)
    others = [image_id for image_id in captions if image_id not in image_ids]
    if others:
        raise InputError(
            f"{path}: {len(others)} of {len(captions)} captions are of images that are not in the {split} split "
            f"(first image_id {others[0]!r}); give the split that was captioned as --split, or take them out"
        )
    if len(captions) < len(image_ids):
        say = f"{path} has captions of {len(captions):,} of {len(image_ids):,} images of the {split} split"
        print(f"{say}: scores are of these, CIDEr's document frequencies of the whole split", file=sys.stderr)
    return captions


def _check_images(captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]]) -> None:
    if not captions:
        raise InputError("no captions to score")
    missing = [image_id for image_id in captions if not ground_truths.get(image_id)]
    if missing:
        raise InputError(f"no ground truth for {len(missing)} images (first image_id {missing[0]}): leave them out")


def _scorers(words: Words, documents: Truths) -> dict[str, Callable[[Truths, Truths], Scores]]:
    """The scorers by the name that error messages use, in the order of the tables."""
    english = words.language == "en"
    scorers: dict[str, Callable[[Truths, Truths], Scores]] = {"BLEU": _bleu}
    scorers |= {"METEOR": _meteor} if english else {}
    scorers |= {"ROUGE_L": _rouge, "CIDEr": partial(_cider, documents)}
    if english and spice_has_models():
        scorers["SPICE"] = _spice
    elif english:
        command = "python -m pycocoevalcap.spice.get_stanford_models"
        say_once(f"SPICE is left out, for want of its models: '{command}' downloads them (400 MB)")
    return scorers


def _bleu(truths: Truths, results: Truths) -> Scores:
    """Bleu_1..4, and per image [n, 10] the counts that they are computed from."""
    scorer = BleuScorer(n=4)
    for image_id, (caption,) in results.items():
        scorer += (caption, truths[image_id])
    bleu, _ = scorer.compute_score(option="closest")
    counts = [
        [
            image["testlen"],
            min((abs(length - image["testlen"]), length) for length in image["reflen"])[1],
            *image["guess"],
            *image["correct"],
        ]
        for image in scorer.ctest
    ]
    metrics = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
    return metrics, {"bleu": np.array(counts, np.float64)}


def _meteor(truths: Truths, results: Truths) -> Scores:
    score, statistics = score_meteor(truths, results)
    return {"METEOR": score}, {"meteor": statistics}


def _rouge(truths: Truths, results: Truths) -> Scores:
    score, per_image = Rouge().compute_score(truths, results)
    return {"ROUGE_L": float(score)}, {"ROUGE_L": np.asarray(per_image)}


def _cider(documents: Truths, truths: Truths, results: Truths) -> Scores:
    """Document frequencies are of all `documents`, with or without results."""
    captions = {**results, **{image_id: [""] for image_id in documents if image_id not in results}}
    _, per_image = Cider().compute_score({image_id: documents[image_id] for image_id in captions}, captions)
    return {"CIDEr": float(np.mean(per_image[: len(results)]))}, {"CIDEr": per_image[: len(results)]}


def _spice(truths: Truths, results: Truths) -> Scores:
    per_image = score_spice(truths, results)
    return {"SPICE": float(per_image.mean())}, {"SPICE": per_image}
