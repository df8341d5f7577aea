"""The words of all captions of a data set, kept for the next start."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from src.data.record import ImageId
from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time, whole_file


def cached_tokens(
    captions: Mapping[ImageId, Sequence[str]],
    tokenize: Callable[[Sequence[str]], list[str]],
    name: str,
    cache_dir: Path | None,
) -> dict[ImageId, list[str]]:
    """Tokenise the captions of each image id, in the same order; `cache_dir`, if any, keeps the result.

    name: the tokenizer's name. It and a hash of the captions name the cache file; a damaged one is rewritten.
    Raises InputError if the cache cannot be written, or from `tokenize`.
    """
    if cache_dir is None:
        lines = iter(tokenize([caption for rows in captions.values() for caption in rows]))
        return {image_id: [next(lines) for _ in rows] for image_id, rows in captions.items()}
    source = json.dumps([version("pycocoevalcap"), [[image_id, list(rows)] for image_id, rows in captions.items()]])
    path = cache_dir / f"{name}-{hashlib.sha256(source.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        cached = json.loads(path.read_text(encoding="utf-8"))
        if [[type(line) for line in rows] for rows in cached] == [[str] * len(rows) for rows in captions.values()]:
            return dict(zip(captions, cached, strict=True))
    tokenized = cached_tokens(captions, tokenize, name, None)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(cache_dir), whole_file(path) as partial:
            partial.write_text(json.dumps(list(tokenized.values())), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{cache_dir}: cannot write the token cache ({error}); use a writable folder") from error
    return tokenized
