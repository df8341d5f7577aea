"""METEOR and SPICE, which are Java programs of pycocoevalcap's, in English."""

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
    """METEOR, and per image [n, 23] the statistics that it is computed from (src.evaluation.bootstrap).

    InputError if Java is missing or fails.
    """

    def one_field(texts: list[str]) -> list[str]:
        """||| separates METEOR's fields, and pycocoevalcap leaves it in ground truths."""
        return [text.replace("|||", " ") for text in texts]

    with meteor_child() as meteor:
        score, _ = meteor.compute_score(
            {image_id: one_field(texts) for image_id, texts in truths.items()},
            {image_id: one_field(texts) for image_id, texts in results.items()},
        )
        statistics = np.array([line.split() for line in meteor.lines], np.float64)
    perfect = (statistics[:, 21:23] == statistics[:, 0:2]).all(1) & (statistics[:, 20] == 1)
    statistics[perfect, 20] = 0  # as METEOR does before it sums
    return float(score), statistics


class _Meteor(meteor_module.Meteor):
    """Meteor's own interface to its process, which is started here."""

    def __init__(self, jar: Path, stderr: IO[bytes]) -> None:
        arguments = ["-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        # stderr is a file: nobody reads a pipe while METEOR works, and a full one would stop it for ever.
        self.meteor_p = start_java(arguments, heap=METEOR_HEAP, stdin=PIPE, stdout=PIPE, stderr=stderr)
        self.lock = threading.Lock()
        self.lines: list[str] = []

    def _stat(self, hypothesis_str: str, reference_list: list[str]) -> str:
        """Meteor's own, but keeps the line of statistics."""
        line = super()._stat(hypothesis_str, reference_list)
        self.lines.append(line)
        return line

    def __del__(self) -> None:
        """Meteor's own waits for ever on its lock after a failure; `meteor_child` ends the process instead."""


@contextlib.contextmanager
def meteor_child() -> Iterator[_Meteor]:
    """METEOR's Java process, ended on leaving whatever happens; InputError if it breaks."""
    with plain_jar(METEOR_JAR, "data") as jar, tempfile.TemporaryFile() as stderr:
        meteor = _Meteor(jar, stderr)
        child = meteor.meteor_p
        try:
            yield meteor
        except (OSError, ValueError) as error:  # a closed pipe, or a line that is not a number
            with contextlib.suppress(TimeoutExpired):
                child.wait(1)  # for its own status, where it has ended
            child.kill()
            stderr.seek(0)
            raise java_failure("METEOR", child.returncode, stderr.read()) from error
        finally:
            child.kill()
            child.wait()
            with contextlib.suppress(OSError):  # what was not written yet
                child.communicate()  # closes the pipes


def spice_has_models() -> bool:
    """Whether SPICE's models, which no package holds, have been fetched."""
    return (SPICE_JAR.parent / "lib" / f"{get_stanford_models.JAR}-models.jar").is_file()


def score_spice(truths: Mapping[ImageId, list[str]], results: Mapping[ImageId, list[str]]) -> np.ndarray:
    """SPICE of each image, in the order of `results`. InputError if Java is missing or fails."""
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
    """Where SPICE keeps what it has parsed: beside its jar, or for this time alone where that cannot be written."""
    for cache in (SPICE_JAR.parent / "cache", Path(folder, "cache")):
        with contextlib.suppress(OSError):
            cache.mkdir(exist_ok=True)
            if os.access(cache, os.W_OK):
                return cache
    return Path(folder)
