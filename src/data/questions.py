"""Multiple-choice questions about images: a caption is worth what can be answered from it (arXiv:2509.22647).

Files hold one JSON object per line; `type` may be missing:

    {"image_id": 7, "question": "what color is the star", "options": ["red", "blue"], "answer": "red", "type": "color"}
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from src.config.schema import Config
from src.data.record import ImageId
from src.runtime.errors import InputError
from src.runtime.files import append_json_lines, json_lines, read_text_lines, whole_file

CANNOT = "cannot be answered from the caption"
UNTYPED = "other"  # the type of a question whose line names none
# The outcomes of the questions written about an image, and whether no reply about it could be read (0 or 1).
COUNTS = ("kept", "leaks", "unanswerable", "malformed", "unreadable")


@dataclass(frozen=True)
class Question:
    """A question about an image. `answer` is one of `options`, none of which is CANNOT."""

    image_id: ImageId
    question: str
    options: tuple[str, ...]
    answer: str
    type: str = UNTYPED


@dataclass(frozen=True)
class Presentation:
    """A question put to a model that has only the caption: options in a shuffled order, CANNOT last."""

    caption: str
    question: str
    options: tuple[str, ...]


class Answerer(Protocol):
    """A model that answers from captions, and cannot see the images."""

    def answer(self, presentations: Sequence[Presentation]) -> Sequence[int | None]:
        """Return the index of the option chosen in each presentation; None if unanswered."""


def questions_file(config: Config, split: str) -> Path:
    """Return the file that caprl.questions names for a split. Raises InputError if it is not set."""
    pattern = config.caprl.questions
    if pattern is None:
        raise InputError("caprl.questions=null: set it to a file, such as caprl.questions=questions_{split}.jsonl")
    return Path(config.data.root) / pattern.replace("{split}", split)


def present(question: Question, caption: str, order: Iterable[int]) -> tuple[Presentation, int]:
    """Put a question beside a caption, its options in `order`; also return the index of the right answer among them."""
    options = tuple(question.options[place] for place in order)
    return Presentation(caption, question.question, (*options, CANNOT)), options.index(question.answer)


def words_of(text: str) -> list[str]:
    """Return the lower-case words without punctuation."""
    return re.findall("[a-z]+", text.lower())


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines."""
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(asdict(question)) + "\n" for question in questions), encoding="utf-8")


def load_questions(path: Path) -> dict[ImageId, list[Question]]:
    """Read the questions of each image id; blank lines are skipped. Raises InputError naming file and line."""
    missing = "no such file of questions; write one JSON object per line (docs/data.md)"
    questions: dict[ImageId, list[Question]] = {}
    for number, line in enumerate(read_text_lines(path, missing, "write questions as JSON lines in UTF-8"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            try:
                entry = json.loads(line)
            except ValueError:
                raise InputError(f"{where} is not JSON; write one object per line") from None
            question = parse_question(entry, where)
            questions.setdefault(question.image_id, []).append(question)
    if not questions:
        raise InputError(f"{path}: holds no question; write one JSON object per line (docs/data.md)")
    return questions


def parse_question(entry: Any, where: str) -> Question:
    """Convert the value of a line to a question. Raises InputError that begins with `where` and names the key."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object; write image_id, question, options and answer")
    known = ("image_id", "question", "options", "answer", "type")
    if unknown := [key for key in entry if key not in known]:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}")
    entry = {"type": UNTYPED, **entry}
    options = entry.get("options")
    several = isinstance(options, list) and len(options) >= 2 and all(map(_is_text, options))
    wanted = {"image_id": "the id of an image", "options": "a list of two or more texts"}
    good = {"image_id": type(entry.get("image_id")) in (int, str), "options": several}
    for key in known:
        if not good.get(key, _is_text(entry.get(key))):
            raise InputError(f"{where}: {key} is {entry.get(key)!r}; give {wanted.get(key, 'a text')}")
    if len({*options, CANNOT}) <= len(options):
        raise InputError(f"{where}: an option occurs twice, or is {CANNOT!r}, which is always appended; remove it")
    if entry["answer"] not in options:
        raise InputError(f"{where}: answer {entry['answer']!r} is none of the options; give one of them")
    return Question(**{**entry, "options": tuple(options)})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


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
