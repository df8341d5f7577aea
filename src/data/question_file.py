"""A file of questions that grows image by image, through interruptions."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.data.questions import Question, load_questions, question_lines
from src.data.record import ImageId
from src.runtime.errors import InputError

# What became of the questions written about an image; of the image itself, whether no reply could be read (0 or 1).
COUNTS = ("kept", "leaks", "unanswerable", "malformed", "unreadable")


class QuestionFile:
    """The questions in `path`, and `<path>.done` with a line for each image that was asked about, were any kept or not.

    image_ids: of the images that are done, and `without` of those of them that have no question; counts: COUNTS and
    `images`, over the lines of `.done`. An image's questions are written before its line: one that has questions is
    done, whoever wrote them. Errors: InputError naming the file and its damaged line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image_ids: set[ImageId] = set()
        self.without: set[ImageId] = set()
        self.counts: Counter[str] = Counter()
        self._done = path.with_name(path.name + ".done")
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, line in enumerate(whole_lines(self._done), 1):
            try:
                entry = json.loads(line)
                self._count(entry["image_id"], Counter({name: int(entry[name]) for name in COUNTS}))
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self._done}: line {number} is damaged; remove it") from None
        if whole_lines(path):
            having = load_questions(path).keys()
            self.image_ids |= having
            self.without -= having

    def add(self, image_id: ImageId, questions: Sequence[Question], counts: Counter) -> None:
        """Write what was made about an image. counts: of COUNTS."""
        _append(self.path, question_lines(questions))
        _append(self._done, json.dumps({"image_id": image_id, **{name: counts[name] for name in COUNTS}}) + "\n")
        self._count(image_id, counts)

    def _count(self, image_id: ImageId, counts: Counter) -> None:
        self.image_ids.add(image_id)
        if not counts["kept"]:
            self.without.add(image_id)
        self.counts += counts
        self.counts["images"] += 1

    def summary(self) -> str:
        """What was made, in one line."""
        counts = self.counts
        made = counts["kept"] + counts["leaks"] + counts["unanswerable"] + counts["malformed"]
        return (
            f"{self.path}: {counts['images']:,} images, {made:,} questions made, {counts['kept']:,} kept; dropped: "
            f"{counts['leaks']:,} leaks (answered without the image), {counts['unanswerable']:,} unanswerable (not "
            f"answered with it), {counts['malformed']:,} malformed; {counts['unreadable']:,} images without a readable "
            f"reply, {len(self.without):,} without a question"
        )


def whole_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines, none where it is missing. What a kill or a full disk cut off is removed."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        try:
            json.loads(data[end:])
            _append(path, "\n")  # a last line that was written by hand
        except ValueError:
            os.truncate(path, end)
            data = data[:end]
    return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
