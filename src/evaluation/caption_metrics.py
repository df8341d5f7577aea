"""Scores of captions by pycocoevalcap after its PTB tokenizer, and the line that says how a score was made."""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import get_stanford_models, spice

from src.data.ptb import java_failure, ptb_tokenize, put_java_on_path, tokenize_captions
from src.data.record import ImageId, with_known_ids
from src.errors import InputError
from src.progress import Progress

_WANTED = 'a list of {"image_id": int or str, "caption": str}'


class CaptionScores(NamedTuple):
    """`metrics`: Bleu_1..4, METEOR, ROUGE_L, CIDEr on pycocoevalcap's scale.

    `segments`: what src.evaluation.bootstrap computes them from, one row per image in the order of the captions.
    """

    metrics: dict[str, float]
    segments: dict[str, np.ndarray]


def compute_metrics(
    captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]], *, ptb_done: bool = False
) -> CaptionScores:
    """Score one caption per image id against its ground truths; document frequencies are those of all `ground_truths`.

    ptb_done: the ground truths (not the captions) come from `ptb_tokenize` already.
    InputError if a caption has no ground truths, or if Java is missing or fails. METEOR takes 10 s to load.
    """
    documents, results = tokenized(captions, ground_truths, ptb_done=ptb_done)
    truths = {image_id: documents[image_id] for image_id in results}
    with Progress("metrics", 5, "metric") as bar:
        bleu, bleu_counts = _bleu(truths, results)
        bar.update(note="METEOR")
        meteor, meteor_statistics = _meteor(truths, results)
        bar.update(note="ROUGE-L")
        rouge, rouge_per_image = Rouge().compute_score(truths, results)
        bar.update(note="CIDEr")
        cider, cider_per_image = _cider(documents, results)
        bar.update(note="SPICE")
        spice_per_image = _spice(truths, results)
        bar.update()
    metrics = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
    metrics |= {"METEOR": meteor, "ROUGE_L": float(rouge), "CIDEr": float(cider)}
    segments = {"bleu": bleu_counts, "meteor": meteor_statistics}
    segments |= {"ROUGE_L": np.asarray(rouge_per_image), "CIDEr": np.asarray(cider_per_image)}
    if spice_per_image is not None:
        metrics["SPICE"], segments["SPICE"] = float(spice_per_image.mean()), spice_per_image
    return CaptionScores(metrics, segments)


def tokenized(
    captions: Mapping[ImageId, str], ground_truths: Mapping[ImageId, Sequence[str]], *, ptb_done: bool = False
) -> tuple[dict[ImageId, list[str]], dict[ImageId, list[str]]]:
    """All ground truths, and the captions, as pycocoevalcap's scorers take them."""
    _check_images(captions, ground_truths)
    truths = {image_id: list(rows) for image_id, rows in ground_truths.items()}
    truths = truths if ptb_done else tokenize_captions(truths, None)
    lines = ptb_tokenize(list(captions.values()))
    return truths, {image_id: [line] for image_id, line in zip(captions, lines, strict=True)}


def signature(*, document_frequencies: str, decoding: str, num_images: int, of: int | None = None) -> str:
    """How the scores of `compute_metrics` were made, in SacreBLEU's manner.

    document_frequencies: the name of the evaluated split, whose ground truths give CIDEr's document frequencies.
    decoding: for example "greedy", "beam3", or "file" for captions made elsewhere. of: images of the whole split.
    """
    images = f"{num_images}" if of in (None, num_images) else f"{num_images}/{of}"
    parts = f"tok:ptb|df:{document_frequencies}|eos:no|decoding:{decoding}|images:{images}"
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


def _cider(documents: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> tuple[float, np.ndarray]:
    """CIDEr of `results`, and of each; its document frequencies are of all `documents`."""
    captions = {**results, **{image_id: [""] for image_id in documents if image_id not in results}}
    _, scores = Cider().compute_score({image_id: documents[image_id] for image_id in captions}, captions)
    return float(np.mean(scores[: len(results)])), scores[: len(results)]


def _bleu(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> tuple[list[float], np.ndarray]:
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
    return bleu, np.array(counts, np.float64)


def _meteor(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> tuple[float, np.ndarray]:
    """METEOR, and per image [n, 23] the statistics that it is computed from (src.evaluation.bootstrap)."""

    def one_field(texts: list[str]) -> list[str]:
        """||| separates METEOR's fields, and pycocoevalcap leaves it in ground truths."""
        return [text.replace("|||", " ") for text in texts]

    with _meteor_child() as meteor:
        score, _ = meteor.compute_score(
            {image_id: one_field(texts) for image_id, texts in truths.items()},
            {image_id: one_field(texts) for image_id, texts in results.items()},
        )
        statistics = np.array([line.split() for line in meteor.lines], np.float64)
    perfect = (statistics[:, 21:23] == statistics[:, 0:2]).all(1) & (statistics[:, 20] == 1)
    statistics[perfect, 20] = 0  # as METEOR does before it sums
    return float(score), statistics


def _spice(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> np.ndarray | None:
    """SPICE of each image, in the order of `results`; None, and one line on stderr, where it cannot run."""
    folder = Path(spice.__file__).parent
    if not (folder / "lib" / f"{get_stanford_models.JAR}-models.jar").is_file():
        command = "python -m pycocoevalcap.spice.get_stanford_models"
        _say_once(f"SPICE is left out, for want of its models: '{command}' downloads them (400 MB)")
        return None
    put_java_on_path()
    try:
        _, scores = spice.Spice().compute_score(truths, results)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        _say_once(f"SPICE is left out: it failed in {folder} ({' '.join(str(error).split())})")
        return None
    by_image = dict(zip(sorted(results), scores, strict=True))  # its scores are in the order of the sorted ids
    return np.array([by_image[image_id]["All"]["f"] for image_id in results])


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


class _Meteor(Meteor):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _stat(self, hypothesis_str: str, reference_list: list[str]) -> str:
        """Meteor's own, but keeps the line of statistics."""
        line = super()._stat(hypothesis_str, reference_list)
        self.lines.append(line)
        return line

    def __del__(self) -> None:
        """Meteor's own waits for ever on its lock after a failure; `_meteor_child` ends the process instead."""


@contextlib.contextmanager
def _meteor_child() -> Iterator[Meteor]:
    """METEOR's Java process, ended on leaving whatever happens; InputError if it breaks."""
    put_java_on_path()
    try:
        meteor = _Meteor()
    except OSError as error:
        raise InputError(f"java does not start: {error}") from error
    child = meteor.meteor_p
    try:
        yield meteor
    except (OSError, ValueError) as error:  # a closed pipe, or a line that is not a number
        child.kill()
        raise java_failure("METEOR", child.stderr.read()) from error
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            with contextlib.suppress(OSError):  # what was not written yet
                pipe.close()
