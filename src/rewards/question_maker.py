"""Questions about an image from a vision-language server, without those that need no image (arXiv:2509.22647).

The model writes multiple-choice questions about an image, then answers each under every rotation of its options, with
the image and without it. A question is kept if its accuracy is above SEEN with the image, and below BLIND without.

UNSEEN follows the options in every rotation. Otherwise a model that names the same letter whenever it sees nothing
would be right in one rotation of four, which is not below BLIND: no question would be kept.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from typing import Any, TypeVar

from openai import APIStatusError
from PIL import Image

from src.config.schema import CapRLConfig
from src.data.image_url import image_url
from src.data.questions import UNTYPED, Question, parse_question
from src.data.record import ImageId, is_utf8
from src.rewards.reply import NoOption, lettered
from src.rewards.server import FAILURES, THINKS, Client
from src.runtime.errors import InputError
from src.runtime.progress import say

Result = TypeVar("Result")

SEEN, BLIND = 0.75, 0.25
OPTIONS = 4  # of each question
TYPES = ("object", "attribute", "count", "position", "action", "text", "scene")
UNSEEN = "this cannot be answered"
_TEMPERATURES = (0.0, 0.7)  # of the first try, and of the second, which must not repeat the first
_TOKENS = 150  # of a question in a reply; thinking before it is limited by caprl.max_tokens
_REJECTED = (400, 413, 422)  # the server is alive, but cannot take this image
_LETTERED = re.compile(r"\(?[A-Da-d][).:]\s")  # "A. red" would get a second letter


class ImageFailed(Exception):
    """No questions could be made about an image. down: the cause is the server, which may fail the next one too."""

    def __init__(self, reason: str, *, down: bool) -> None:
        super().__init__(reason)
        self.down = down


class QuestionMaker:
    """Makes `questions` questions about an image; threads may share it. `stop` makes their next requests fail.

    Errors: InputError if a first question about a picture fails.
    """

    def __init__(self, config: CapRLConfig, questions: int) -> None:
        self.questions = questions
        self.stop = Event()
        self._client = Client(config)
        self._shown = False
        square = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(square, "PNG")
        content = _parts(image_url(square.getvalue()), answering_prompt("What color is this?", ("red", "blue")))
        fix = "start a vision-language model, or correct caprl.base_url, caprl.model or OPENAI_API_KEY"
        self._client.check(lambda: self._client.choose(content, ("red", "blue", UNSEEN)), fix)

    def make(self, image_id: ImageId, load: Callable[[], bytes]) -> tuple[list[Question], Counter]:
        """The questions to keep about the image whose bytes `load` returns, and the counts of questions.COUNTS.

        malformed: not as the prompt asks, or a duplicate; unreadable: 1 if no reply was a JSON list.
        Errors: ImageFailed.
        """
        try:
            url = image_url(load())
        except (OSError, ValueError) as error:
            raise ImageFailed(str(error), down=False) from None
        entries = self._write(url)
        counts = Counter(unreadable=int(entries is None))
        kept: list[Question] = []
        asked: set[str] = set()
        for entry in (entries or [])[: self.questions]:
            question = clean_question(entry, image_id)
            if question is None or question.question in asked:
                counts["malformed"] += 1
                continue
            asked.add(question.question)
            blind, seen = self._accuracy(question, None), self._accuracy(question, url)
            fate = "leaks" if blind >= BLIND else "unanswerable" if seen <= SEEN else "kept"
            counts[fate] += 1
            if fate == "kept":
                kept.append(question)
        return kept, counts

    def _write(self, url: str) -> list | None:
        """The entries that the model writes about an image; None if two replies are not a list.

        Errors: ImageFailed if the second is cut off.
        """
        content = _parts(url, writing_prompt(self.questions))
        for temperature in _TEMPERATURES:
            ask = partial(self._client.chat, content, temperature=temperature, more_tokens=_TOKENS * self.questions)
            reply = self._request(ask)
            entries = read_list(reply.text)
            if entries is not None:
                return entries
        if reply.cut:
            raise ImageFailed(f"no questions, but {reply.shown}; {THINKS}", down=True)
        if not self._shown:
            self._shown = True
            say(f"a reply is not a JSON list of questions; the first such reply is shown: {reply.shown}")
        return None

    def _accuracy(self, question: Question, url: str | None) -> float:
        """The share of rotations in which the right option is chosen; a reply that names no option is not right."""
        right = 0
        for turn in range(OPTIONS):
            options = (*question.options[turn:], *question.options[:turn], UNSEEN)
            content = _parts(url, answering_prompt(question.question, options[:-1]))
            with suppress(NoOption):
                chosen = self._request(partial(self._client.choose, content, options))
                right += options[chosen] == question.answer
        return right / OPTIONS

    def _request(self, send: Callable[[], Result]) -> Result:
        if self.stop.is_set():
            raise ImageFailed("stopped", down=False)
        try:
            return send()
        except FAILURES as error:
            rejected = isinstance(error, APIStatusError) and error.status_code in _REJECTED
            raise ImageFailed(self._client.explain(error), down=not rejected) from None


def writing_prompt(questions: int) -> str:
    """Asks for questions about an image."""
    example = (
        '{"question": "What is the dog carrying in its mouth?", "options": ["a ball", "a shoe", "a stick", "a bone"], '
        '"answer": "a stick", "type": "object"}'
    )
    return (
        f"Write {questions} multiple-choice questions about different things in this image. Each has one right answer, "
        "which is plain to see in the image; without the image, every option is as likely as the others. "
        f"Reply with a JSON list of {questions} objects like this one, and nothing else:\n"
        f"[{example}]\n"
        f"`options` are {OPTIONS} different short texts without letters or numbers in front, `answer` is one of them "
        f"word for word, `type` is one of: {', '.join(TYPES)}."
    )


def answering_prompt(question: str, options: Sequence[str]) -> str:
    """Asks a question, in the same words with the image and without, with UNSEEN as the last option."""
    return (
        f"Question about an image: {question}\n{lettered((*options, UNSEEN))}\n\n"
        "Reply with the letter of the right option, and nothing else."
    )


def read_list(reply: str | None) -> list | None:
    """A reply as a JSON list, in a code fence or not; None for anything else."""
    match = re.fullmatch(r"(```(?:json)?\s*)?(\[.*\])(?(1)\s*```)", (reply or "").strip(), re.DOTALL)
    with suppress(ValueError, RecursionError):
        return json.loads(match[2]) if match else None
    return None


def clean_question(entry: Any, image_id: ImageId) -> Question | None:
    """An entry of a reply as a question, with blanks collapsed; None if it is not what the prompt asks for."""
    try:
        texts = [entry["question"], entry["answer"]] + entry["options"]  # which must be a list
        asked, answer, *options = (" ".join(text.split()) for text in texts)
    except (AttributeError, KeyError, TypeError):
        return None
    if len(options) != OPTIONS or UNSEEN in options or any(map(_LETTERED.match, options)):
        return None
    if not all(map(is_utf8, (asked, *options))):  # half of a surrogate pair cannot be sent
        return None
    kind = entry["type"] if entry.get("type") in TYPES else UNTYPED
    fields = {"image_id": image_id, "question": asked, "options": options, "answer": answer, "type": kind}
    with suppress(InputError):
        return parse_question(fields, "a reply")
    return None


def _parts(url: str | None, text: str) -> list[dict]:
    """The content of a message; the image comes first, so that servers can cache what they computed from it."""
    image = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return [*image, {"type": "text", "text": text}]
