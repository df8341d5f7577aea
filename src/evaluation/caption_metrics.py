"""Score captions with pycocoevalcap, over words as src/data/words.py makes them, and say how in one line."""

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
_ONE_IMAGE = "CIDEr is 0.0: it weighs words by the logarithm of the number of images, and there is one image, log 1 = 0"

Truths = Mapping[ImageId, list[str]]
Scores = tuple[dict[str, float], dict[str, np.ndarray]]  # metrics and segments of one scorer


class CaptionScores(NamedTuple):
    """metrics: Bleu_1..4, METEOR, ROUGE_L, CIDEr, SPICE on pycocoevalcap's scale.

    segments: what src.evaluation.bootstrap computes them from, one row per image in the order of the captions.
    left_out: reasons by metric that failed. notes: what a reader of the scores must know, a line each.
    """

    metrics: dict[str, float]
    segments: dict[str, np.ndarray]
    left_out: dict[str, str]
    notes: list[str]


def compute_metrics(
    captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]], words: Words = ENGLISH
) -> CaptionScores:
    """Score one caption per image id against its ground truths; document frequencies come from all `ground_truths`.

    ground_truths: already tokenized by `words`, unlike the captions. A metric that fails is left out, with one line on
    stderr. Errors: InputError if a caption has no ground truths, if Java is missing to tokenize English captions, or if
    every metric fails. METEOR takes 10 s to load.
    """
    if not captions:
        raise InputError("no captions to score; pass captions of at least one image")
    missing = [image_id for image_id in captions if not ground_truths.get(image_id)]
    if missing:
        raise InputError(f"no ground truth for {len(missing)} images (first image_id {missing[0]}); remove them")
    lines = words.tokenize(list(captions.values()))
    results = {image_id: [line] for image_id, line in zip(captions, lines, strict=True)}
    documents = {image_id: list(rows) for image_id, rows in ground_truths.items()}
    truths = {image_id: documents[image_id] for image_id in results}
    scores = CaptionScores({}, {}, {}, [])
    scorers: dict[str, Callable[[Truths, Truths], Scores]]
    scorers = {"BLEU": _bleu, "METEOR": _meteor, "ROUGE_L": partial(_mean, "ROUGE_L", _rouge)}
    scorers["CIDEr"] = partial(_mean, "CIDEr", partial(_cider, documents))
    if words.language != "en":
        del scorers["METEOR"]
        scores.notes.append("METEOR and SPICE are left out: they are made for English")
    elif spice_has_models():
        scorers["SPICE"] = partial(_mean, "SPICE", score_spice)
    else:
        command = "python -m pycocoevalcap.spice.get_stanford_models"
        say_once(f"SPICE is left out: its models are missing; '{command}' downloads them (400 MB)")
    with Progress("metrics", len(scorers), "metric") as bar:
        for name, scorer in scorers.items():
            try:
                found, statistics = scorer(truths, results)
            except Exception as error:  # whatever one scorer runs into, keep the others: they cost hours of training
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                scores.left_out[name] = kind + " ".join(str(error).split())
                print(f"{name} is left out: {scores.left_out[name]}", file=sys.stderr)
            else:
                scores.metrics.update(found)
                scores.segments.update(statistics)
            bar.update(note=name)
    if not scores.metrics:
        raise InputError(f"no metric could be computed; the first failed with {next(iter(scores.left_out.values()))}")
    if len(documents) == 1 and "CIDEr" in scores.metrics:
        scores.notes.append(_ONE_IMAGE)
    for note in scores.notes:
        say_once(note)
    return scores


def signature(*, tokens: str, document_frequencies: str, decoding: str, num_images: int, of: int | None = None) -> str:
    """Describe how the scores of `compute_metrics` were made, as SacreBLEU does.

    tokens: Words.name. document_frequencies: the name of the evaluated split, whose ground truths give CIDEr's
    document frequencies. decoding: for example "greedy", "beam3", or "file" for captions made elsewhere.
    of: images of the whole split.
    """
    images = f"{num_images}" if of in (None, num_images) else f"{num_images}/{of}"
    parts = f"tok:{tokens}|df:{document_frequencies}|eos:no|decoding:{decoding}|images:{images}"
    return f"{parts}|pycocoevalcap:{version('pycocoevalcap')}"


def load_captions(path: str | Path) -> dict[ImageId, str]:
    """Read a COCO results file: a list of {"image_id": int or str, "caption": str}; other keys are ignored.

    Errors: InputError naming the file and the first wrong entry. An empty caption is valid.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; pass a COCO results file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); fix the file or its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); expected {_WANTED}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: expected {_WANTED}, with at least one entry")
    captions: dict[ImageId, str] = {}
    for number, entry in enumerate(entries):
        image_id: Any = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) not in (int, str):  # not isinstance: True is an int
            raise InputError(f'{path}: entry {number} has no "image_id"; expected {{"image_id": 1, "caption": ""}}')
        if not isinstance(entry.get("caption"), str):
            raise InputError(f'{path}: entry {number} (image_id {image_id}) has no string "caption"; add it')
        if image_id in captions:
            raise InputError(f"{path}: entry {number} repeats image_id {image_id}; keep one caption per image")
        captions[image_id] = entry["caption"]
    return captions


def load_split_captions(path: Path, image_ids: Collection[ImageId], split: str) -> dict[ImageId, str]:
    """Read captions of a split from a results file, and say on stderr if some images have none.

    Errors: InputError naming the file, and an image that is not in the split.
    """
    captions = with_known_ids(load_captions(path), image_ids, path)
    others = [image_id for image_id in captions if image_id not in image_ids]
    if others:
        raise InputError(
            f"{path}: {len(others)} of {len(captions)} captions belong to images that are not in the {split} split "
            f"(first image_id {others[0]!r}); pass the captioned split as --split, or remove them"
        )
    if len(captions) < len(image_ids):
        say = f"{path} has captions of {len(captions):,} of {len(image_ids):,} images of the {split} split"
        print(f"{say}: only these are scored, with CIDEr's document frequencies of the whole split", file=sys.stderr)
    return captions


def _bleu(truths: Truths, results: Truths) -> Scores:
    """Compute Bleu_1..4, and for each image [n, 10] the counts they come from."""
    scorer = BleuScorer(n=4)
    for image_id, (caption,) in results.items():
        scorer += (caption, truths[image_id])
    bleu, _ = scorer.compute_score(option="closest")
    counts = []
    for image in scorer.ctest:
        length = image["testlen"]
        closest = min(image["reflen"], key=lambda truth: (abs(truth - length), truth))
        counts.append([length, closest, *image["guess"], *image["correct"]])
    metrics = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
    return metrics, {"bleu": np.array(counts, np.float64)}


def _meteor(truths: Truths, results: Truths) -> Scores:
    score, statistics = score_meteor(truths, results)
    return {"METEOR": score}, {"meteor": statistics}


def _rouge(truths: Truths, results: Truths) -> np.ndarray:
    return Rouge().compute_score(truths, results)[1]


def _cider(documents: Truths, truths: Truths, results: Truths) -> np.ndarray:
    """Take document frequencies from all `documents`, with or without results."""
    captions = {**results, **{image_id: [""] for image_id in documents if image_id not in results}}
    return Cider().compute_score({image_id: documents[image_id] for image_id in captions}, captions)[1][: len(results)]


def _mean(name: str, score: Callable[[Truths, Truths], np.ndarray], truths: Truths, results: Truths) -> Scores:
    """Average the scores of each image."""
    per_image = np.asarray(score(truths, results))
    return {name: float(per_image.mean())}, {name: per_image}
