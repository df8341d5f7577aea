"""Run METEOR and SPICE, the Java programs in pycocoevalcap, for English."""

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, TimeoutExpired
from typing import IO

import numpy as np
from pycocoevalcap.meteor import meteor as meteor_module
from pycocoevalcap.spice import get_stanford_models, spice

from src.data.record import ImageId
from src.runtime.java import METEOR_HEAP, SPICE_HEAP, java_failure, plain_jar, start_java

METEOR_JAR = Path(meteor_module.__file__).resolve().with_name(meteor_module.METEOR_JAR)
SPICE_JAR = Path(spice.__file__).resolve().with_name(spice.SPICE_JAR)


def score_meteor(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> tuple[float, np.ndarray]:
    """Compute METEOR, and for each image [n, 23] the statistics it comes from (src.evaluation.bootstrap).

    Errors: InputError if Java is missing or fails.
    """
    # ||| separates METEOR's fields, and pycocoevalcap leaves it in ground truths.
    one_field = [
        {image_id: [text.replace("|||", " ") for text in texts] for image_id, texts in captions.items()}
        for captions in (truths, results)
    ]
    with meteor_child() as meteor:
        score, _ = meteor.compute_score(*one_field)
        statistics = np.array([line.split() for line in meteor.lines], np.float64)
    perfect = (statistics[:, 21:23] == statistics[:, 0:2]).all(1) & (statistics[:, 20] == 1)
    statistics[perfect, 20] = 0  # as METEOR does before summing
    return float(score), statistics


class _Meteor(meteor_module.Meteor):
    """pycocoevalcap's interface to METEOR, with a process that is started here, and the lines of statistics."""

    def __init__(self, jar: Path, stderr: IO[bytes]) -> None:
        arguments = ["-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        # stderr is a file: nothing reads a pipe while METEOR runs, and a full pipe would block it.
        self.meteor_p = start_java(arguments, heap=METEOR_HEAP, stdin=PIPE, stdout=PIPE, stderr=stderr)
        self.lock = threading.Lock()
        self.lines: list[str] = []

    def _stat(self, hypothesis_str: str, reference_list: list[str]) -> str:
        self.lines.append(super()._stat(hypothesis_str, reference_list))
        return self.lines[-1]

    def __del__(self) -> None:
        """Replace a method that may block on its lock after a failure; `meteor_child` ends the process."""


@contextlib.contextmanager
def meteor_child() -> Iterator[_Meteor]:
    """Start METEOR's Java process, and end it on leaving. Errors: InputError if it fails."""
    with plain_jar(METEOR_JAR, "data") as jar, tempfile.TemporaryFile() as stderr:
        meteor = _Meteor(jar, stderr)
        child = meteor.meteor_p
        try:
            yield meteor
        except (OSError, ValueError) as error:  # a closed pipe, or a line that is not a number
            with contextlib.suppress(TimeoutExpired):
                child.wait(1)  # for its own status, if it has ended
            child.kill()
            stderr.seek(0)
            raise java_failure("METEOR", child.returncode, stderr.read()) from error
        finally:
            child.kill()
            child.wait()
            with contextlib.suppress(OSError):  # unwritten data
                child.communicate()  # closes the pipes


def spice_has_models() -> bool:
    """Return whether SPICE's models, which are in no package, have been downloaded."""
    return (SPICE_JAR.parent / "lib" / f"{get_stanford_models.JAR}-models.jar").is_file()


def score_spice(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> np.ndarray:
    """Compute SPICE of each image, in the order of `results`. Errors: InputError if Java is missing or fails."""
    rows = [{"image_id": key, "test": caption, "refs": truths[key]} for key, (caption,) in results.items()]
    with plain_jar(SPICE_JAR, "lib") as jar, tempfile.TemporaryDirectory(prefix="spice-") as folder:
        captions, scores = Path(folder, "captions.json"), Path(folder, "scores.json")
        captions.write_text(json.dumps(rows), encoding="utf-8")
        arguments = ["-jar", str(jar), str(captions), "-cache", str(_spice_cache(folder)), "-out", str(scores)]
        arguments += ["-subset", "-silent"]
        with start_java(arguments, heap=SPICE_HEAP, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE) as child:
            _, stderr = child.communicate()
        if child.returncode != 0:
            raise java_failure("SPICE", child.returncode, stderr)
        found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(scores.read_text(encoding="utf-8"))}
    return np.array([found[image_id] for image_id in results], np.float64)  # None: NaN


def _spice_cache(folder: str) -> Path:
    """Return the folder of SPICE's cache: beside its jar or, if that is read-only, a temporary one."""
    for cache in (SPICE_JAR.parent / "cache", Path(folder, "cache")):
        with contextlib.suppress(OSError):
            cache.mkdir(exist_ok=True)
            if os.access(cache, os.W_OK):
                return cache
    return Path(folder)
