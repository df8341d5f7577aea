"""Caption photographs with one or more checkpoints: print a table, or append to a file of JSON lines, resumably."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from src.captioning.captioners import Captioners
from src.captioning.captions import Captions
from src.captioning.inputs import Found, find_photographs, skipped_note
from src.captioning.output import CaptionFile, CaptionTable, DonePaths, path_digest, printable
from src.config.schema import Config
from src.data.model_folder import config_digest
from src.data.photographs import READER, Photograph, UnusableImage, read_photograph
from src.runtime.environment import start_time
from src.runtime.errors import InputError, TimeLimit
from src.runtime.files import file_digest
from src.runtime.progress import Progress
from src.runtime.threads import in_order
from src.runtime.workers import Workers

Prepared = tuple[str, Photograph | str]  # a path with the captioners' input, or the reason why it has none


def caption_photographs(
    config: Config, checkpoints: Mapping[str, Path], items: Sequence[str], output: Path | None, workers: Workers
) -> None:
    """Print a table of captions, or append missing captions to the file `output`; report failures on stderr.

    items: as for `find_photographs`; the digest of a path decides which worker captions it.
    Errors: InputError if nothing could be captioned or `output` does not fit, TimeLimit; a bad file is not an error.
    """
    if output is None and workers.size > 1:
        raise InputError("several devices need --output FILE.jsonl: only the first one prints")
    captioners = Captioners(config, checkpoints, workers)
    sink: CaptionTable | CaptionFile = CaptionTable(list(checkpoints))
    done = DonePaths([])
    if output is not None:
        sink = CaptionFile(output)
        with workers.first_alone():
            if workers.is_first:
                sink.open(_made_from(config, checkpoints))
            done = sink.done()
    skipped: Counter[str] = Counter()
    own = sum(1 for _ in share(items, done, workers, skipped))
    (total,) = workers.sum(np.array([own]))
    every = in_order(partial(prepare, captioners, done), share(items, done, workers), config.data.workers)
    prepared = (row for row in every if row is not None)
    batch = max(1, min(own, config.eval.batch_images // workers.size))
    start, limit = time.monotonic(), 60 * config.stop_after_minutes
    counts = np.zeros(2, int)  # captioned and failed, of all workers
    with Progress("captioning", int(total), "image", shown=output is not None) as bar:
        while True:
            captioned, failed, files = _caption_batch(captioners, prepared, batch)
            for path, reason in failed.items():
                tqdm.write(f"failed: {printable(path)}: {reason}", file=sys.stderr)
            sink.write(captioned, failed, files)
            # All workers step together: none waits at the end longer than a collective may.
            late = 0 < limit < time.time() - start_time()
            *news, late = workers.sum(np.array([len(captioned), len(failed), late])).astype(int)
            if not any(news):
                break
            counts += news
            bar.update(int(sum(news)))
            if late:
                minutes = config.stop_after_minutes
                raise TimeLimit(f"stop_after_minutes={minutes:g} is reached; run the same command to resume")
    if workers.is_first:
        summary = sink.summary(int(counts[0]), int(counts[1]), time.monotonic() - start, len(done))
        print(summary + skipped_note(skipped), file=sys.stderr)
    if counts[0] == 0 and len(done) == 0:
        raise InputError("no photograph could be captioned; check the files behind --images")


def _made_from(config: Config, checkpoints: Mapping[str, Path]) -> dict[str, Any]:
    """Return the settings that captions depend on, besides the photograph."""
    evaluation = {key: value for key, value in asdict(config.eval).items() if key not in ("batch_images", "every")}
    return {
        "checkpoints": {name: file_digest(path) for name, path in checkpoints.items()},
        "eval": evaluation,
        "data": {key: getattr(config.data, key) for key in ("image_size", "aspect", "resize_after_normalize")},
        "encoder": {key: getattr(config.encoder, key) for key in ("kind", "layer", "variant", "scale", "trainable")},
        "models": [config_digest(folder) for folder in (config.language_folder, config.pixels_folder)],
        "prompt": config.policy.prompt,
        "precision": config.precision,
        "reader": READER,
        "seed": config.seed,
    }


def share(
    items: Sequence[str], done: DonePaths, workers: Workers, skipped: Counter[str] | None = None
) -> Iterator[Found]:
    """Find this worker's paths, except those that are captioned and unchanged.

    skipped: as in `find_photographs`, for all workers.
    """
    for found in find_photographs(items, skipped):
        if path_digest(found.path) % workers.size == workers.rank and not done.is_settled(found.path):
            yield found


def prepare(captioners: Captioners, done: DonePaths, path: str, reason: str | None) -> Prepared | None:
    """Read and preprocess one photograph, in a thread; None if the file was rewritten with the same bytes."""
    if reason is not None:
        return path, reason
    try:
        photograph = read_photograph(path)
        return None if done.key(path) == photograph.key else (path, captioners.prepare(photograph))
    except UnusableImage as error:
        return path, str(error)


def _caption_batch(
    captioners: Captioners, prepared: Iterator[Prepared], batch: int
) -> tuple[dict[str, Captions], dict[str, str], dict[str, tuple[int, int]]]:
    """Caption the next `batch` photographs; return captions, reasons of failures, and keys and states, by path.

    Every call of the captioners takes `batch` photographs, the last one repeated, so that all shapes are static.
    """
    failed: dict[str, str] = {}
    files: dict[str, Photograph] = {}
    for path, found in islice(prepared, batch):
        if isinstance(found, str):
            failed[path] = found
        else:
            files[path] = found
    inputs = [*files.values()]
    captions = captioners(inputs + [inputs[-1]] * (batch - len(inputs))) if inputs else []
    return dict(zip(files, captions)), failed, {path: (one.key, one.state) for path, one in files.items()}
