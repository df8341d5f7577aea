"""The words of all captions of a data set, kept for the next start."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from src.data.record import ImageId
from src.runtime.errors import InputError


def cached_tokens(
    captions: Mapping[ImageId, Sequence[str]],
    tokenize: Callable[[Sequence[str]], list[str]],
    name: str,
    cache_dir: Path | None,
) -> dict[ImageId, list[str]]:
    """Tokenise the captions of each image id, in the same order; `cache_dir`, if any, keeps the result.

    name: of the tokenizer. The cache file is named by it and by a hash of the captions; a damaged one is made again.
    InputError if the cache cannot be written, or from `tokenize`.
    """
    ids = list(captions)
    if cache_dir is None:
        return _tokenize_all(captions, tokenize)
    source = json.dumps([version("pycocoevalcap"), [[image_id, list(captions[image_id])] for image_id in ids]])
    path = Path(cache_dir) / f"{name}-{hashlib.sha256(source.encode()).hexdigest()}.json"
    cached = _read_cache(path)
    if cached is not None and [len(rows) for rows in cached] == [len(captions[image_id]) for image_id in ids]:
        return dict(zip(ids, cached, strict=True))
    tokenized = _tokenize_all(captions, tokenize)
    _write_cache(path, list(tokenized.values()))
    return tokenized


def _tokenize_all(
    captions: Mapping[ImageId, Sequence[str]], tokenize: Callable[[Sequence[str]], list[str]]
) -> dict[ImageId, list[str]]:
    lines = iter(tokenize([caption for rows in captions.values() for caption in rows]))
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
