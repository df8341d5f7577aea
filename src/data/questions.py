"""Multiple-choice questions about images: a caption is worth what can be answered from it (arXiv:2509.22647).

Files hold one JSON object per line; `type` may be missing:

    {"image_id": 7, "question": "what color is the star", "options": ["red", "blue"], "answer": "red", "type": "color"}
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from src.config.schema import Config
from src.data.record import ImageId, read_lines
from src.runtime.errors import InputError
from src.runtime.files import whole_file

CANNOT = "cannot be answered from the caption"
UNTYPED = "other"  # the type of a question whose line names none


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
    for number, line in enumerate(read_lines(path, missing, "write questions as JSON lines in UTF-8"), 1):
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
