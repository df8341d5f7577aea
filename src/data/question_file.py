"""A file of questions that grows image by image, across interruptions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.data.questions import Question, load_questions
from src.data.record import ImageId
from src.runtime.files import append_json_lines, json_lines

# The outcomes of the questions written about an image, and whether no reply about it could be read (0 or 1).
COUNTS = ("kept", "leaks", "unanswerable", "malformed", "unreadable")


class QuestionFile:
    """The questions in `path`, and `<path>.done` with a line for each image that was asked about, kept or not.

    image_ids: the images that are done; `without`: those without a question; counts: COUNTS and `images`, over the
    lines of `.done`. An image's questions are written before its line: an image that has questions is done, even if
    they were written by hand. Raises InputError naming the file and its damaged line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image_ids: set[ImageId] = set()
        self.without: set[ImageId] = set()
        self.counts: Counter[str] = Counter()
        self._done = path.with_name(path.name + ".done")
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in filter(Path.exists, (path, self._done)):
            append_json_lines(file, [])  # repairs the last line
        if self._done.exists():
            list(json_lines(self._done, self._count))
        if path.exists() and path.stat().st_size:
            having = load_questions(path).keys()
            self.image_ids |= having
            self.without -= having

    def add(self, image_id: ImageId, questions: Sequence[Question], counts: Counter) -> None:
        """Write the questions of an image, and its `counts` by COUNTS."""
        entry = {"image_id": image_id, **{name: counts[name] for name in COUNTS}}
        append_json_lines(self.path, map(asdict, questions))
        append_json_lines(self._done, [entry])
        self._count(entry)

    def _count(self, entry: Mapping[str, Any]) -> None:
        counts = Counter({"images": 1, **{name: int(entry[name]) for name in COUNTS}})
        self.image_ids.add(entry["image_id"])
        if not counts["kept"]:
            self.without.add(entry["image_id"])
        self.counts += counts

    def summary(self) -> str:
        """Return the counts in one line."""
        counts = self.counts
        made = sum(counts[name] for name in ("kept", "leaks", "unanswerable", "malformed"))
        return (
            f"{self.path}: {counts['images']:,} images, {made:,} questions made, {counts['kept']:,} kept; dropped: "
            f"{counts['leaks']:,} leaks (answered without the image), {counts['unanswerable']:,} unanswerable (not "
            f"answered with it), {counts['malformed']:,} malformed; {counts['unreadable']:,} images without a readable "
            f"reply, {len(self.without):,} without a question"
        )
