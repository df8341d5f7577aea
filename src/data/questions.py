"""Multiple-choice questions about images: what a caption is worth is what can be answered from it (arXiv:2509.22647).

Files hold one JSON object a line; `type` may be missing:

    {"image_id": 7, "question": "what color is the star", "options": ["red", "blue"], "answer": "red", "type": "color"}
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from src.config.schema import Config
from src.data.record import ImageId
from src.runtime.errors import InputError
from src.runtime.files import text_lines, whole_file

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
    """A question as it is put to somebody who has only the caption: options in a shuffled order, CANNOT last."""

    caption: str
    question: str
    options: tuple[str, ...]


class Answerer(Protocol):
    """A model that answers from captions, and cannot see the images."""

    def answer(self, presentations: Sequence[Presentation]) -> Sequence[int | None]:
        """The index of the option chosen in each presentation; None where there is no answer."""


def questions_file(config: Config, split: str) -> Path:
    """Where caprl.questions says that the questions of a split are. Errors: InputError where it says nothing."""
    pattern = config.caprl.questions
    if pattern is None:
        raise InputError("caprl.questions=null: name a file of questions, as caprl.questions=questions_{split}.jsonl")
    return Path(config.data.root) / pattern.replace("{split}", split)


def present(question: Question, caption: str, order: Iterable[int]) -> tuple[Presentation, int]:
    """The question beside a caption, and the index of the right answer among the shuffled options.

    order: a permutation of range(len(question.options)), drawn anew for every presentation.
    """
    options = tuple(question.options[place] for place in order)
    return Presentation(caption, question.question, (*options, CANNOT)), options.index(question.answer)


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall("[a-z]+", text.lower())


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines."""
    with whole_file(path) as partial:
        partial.write_text(question_lines(questions), encoding="utf-8")


def question_lines(questions: Iterable[Question]) -> str:
    """Questions as JSON lines."""
    return "".join(json.dumps(asdict(question)) + "\n" for question in questions)


def load_questions(path: Path) -> dict[ImageId, list[Question]]:
    """Read JSON lines, blank ones skipped: the questions of each image id. Errors: InputError naming file and line."""
    try:
        lines = text_lines(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of questions; write one JSON object a line (docs/data.md)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write questions as JSON lines in UTF-8") from None
    questions: dict[ImageId, list[Question]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            question = _parse(line, f"{path}: line {number}")
            questions.setdefault(question.image_id, []).append(question)
    if not questions:
        raise InputError(f"{path}: holds no question; write one JSON object a line (docs/data.md)")
    return questions


def _parse(line: str, where: str) -> Question:
    try:
        entry = json.loads(line)
    except ValueError:
        raise InputError(f"{where} is not JSON; write one object a line") from None
    return parse_question(entry, where)


def parse_question(entry: Any, where: str) -> Question:
    """What a line holds, as a question. Errors: InputError that begins with `where` and names the key."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object; write image_id, question, options and answer")
    known = ("image_id", "question", "options", "answer", "type")
    unknown = next((key for key in entry if key not in known), None)
    if unknown is not None:
        raise InputError(f"{where}: unknown key {unknown!r}; the keys are {', '.join(known)}")
    if type(entry.get("image_id")) not in (int, str):
        raise InputError(f"{where}: image_id is {entry.get('image_id')!r}; give the id of an image")
    for key in ("question", "answer", "type"):
        if not _is_text(entry.get(key, UNTYPED if key == "type" else None)):
            raise InputError(f"{where}: {key} is {entry.get(key)!r}; give a text")
    options = entry.get("options")
    if not isinstance(options, list) or len(options) < 2 or not all(map(_is_text, options)):
        raise InputError(f"{where}: options is {options!r}; give a list of two texts or more")
    if len({*options, CANNOT}) <= len(options):
        raise InputError(f"{where}: an option stands twice, or is {CANNOT!r}, which is appended by itself; remove it")
    if entry["answer"] not in options:
        raise InputError(f"{where}: answer {entry['answer']!r} is none of the options; give one of them")
    return Question(**{**entry, "options": tuple(options)})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
