"""An answering model behind any OpenAI-compatible server: vLLM, llama.cpp's, llama-cpp-python's, OpenAI's own.

It is asked for the letter of an option through chat completions, the one interface that all of them give with the
model's own chat template; or for the likelihood of every option (src/rewards/likelihood.py).
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from string import ascii_uppercase

from openai import OpenAI, OpenAIError

from src.config import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.errors import InputError
from src.progress import Progress, say
from src.rewards.likelihood import check_log_probs, most_likely

REPLY_TOKENS = 32  # a letter and its option, if the model repeats it
_PROBE = Presentation("a red ball on green grass", "what color is the ball", ("green", "red", CANNOT))
# What a request may end in: an error of the client, or a reply of another shape than the interface has.
FAILURES = (OpenAIError, AttributeError, IndexError, TypeError, ValueError)


class ServerAnswerer:
    """Asks `concurrency` presentations at a time, with the client's timeout and retries for each request.

    Errors: InputError where a first question fails.
    """

    def __init__(self, config: CapRLConfig) -> None:
        self.config = config
        self.client = connect(config)
        self._row_of_failures = 0
        try:
            self._request(_PROBE)
            if config.read == "likelihood":
                check_log_probs(self.client, config)
        except FAILURES as error:
            raise InputError(
                f"caprl.base_url={config.base_url}: model {config.model} does not answer ({one_line(error)}); "
                "start the server, or correct caprl.base_url, caprl.model, caprl.read or OPENAI_API_KEY"
            ) from None

    def answer(self, presentations: Sequence[Presentation]) -> list[int | None]:
        """The index of the option chosen in each; None for a request that failed, or a reply that names no option.

        After 2 * concurrency failed requests in a row the server is down, and the rest is given up.
        """
        self._row_of_failures = 0
        errors: list[str] = []
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            replies = pool.map(lambda presentation: self._ask(presentation, errors), presentations)
            answers = list(Progress("questions", len(presentations), "question").over(replies))
        if None in answers:
            reason = f"the last error was: {errors[-1]}" if errors else "replies named no option"
            say(f"{answers.count(None)} of {len(answers)} questions got no answer; {reason}")
        return answers

    def _ask(self, presentation: Presentation, errors: list[str]) -> int | None:
        if self._row_of_failures >= 2 * self.config.concurrency:
            return None
        try:
            answer = self._request(presentation)
        except FAILURES as error:
            self._row_of_failures += 1
            errors.append(one_line(error))
            return None
        self._row_of_failures = 0
        return answer

    def _request(self, presentation: Presentation) -> int | None:
        if self.config.read == "likelihood":
            return most_likely(self.client, self.config, presentation)
        return choose(self.client, self.config.model, prompt(presentation), presentation.options)


def connect(config: CapRLConfig) -> OpenAI:
    """A client of the server; OPENAI_API_KEY is the key. Asks nothing yet."""
    return OpenAI(
        base_url=config.base_url,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",  # a local server wants none, the client does
        timeout=config.timeout,
        max_retries=config.retries,
    )


def choose(client: OpenAI, model: str | None, content: str | list, options: Sequence[str]) -> int | None:
    """The index of the option whose letter the model replies; None for a reply without. Raises one of FAILURES.

    content: of the message that asks: text, or the interface's list of parts.
    """
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], temperature=0.0, max_tokens=REPLY_TOKENS
    )
    return read_letter(reply.choices[0].message.content, options)


def prompt(presentation: Presentation) -> str:
    """The question as the model reads it, its options lettered A, B, C ..."""
    return (
        f"Caption of an image: {presentation.caption}\n\n"
        f"Question about the image: {presentation.question}\n{lettered(presentation.options)}\n\n"
        "Answer from the caption alone. Reply with the letter of the right option, and nothing else."
    )


def lettered(options: Sequence[str]) -> str:
    """The options in lines of their own, behind A., B., C. ..."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options))


def read_letter(reply: str, options: Sequence[str]) -> int | None:
    """The option that a reply names: "B", "(b)", "B.", or "B. " and the option's own words; None for anything else.

    No more is guessed at: "A red ball" does not choose the first option.
    """
    match = re.fullmatch(r"\(?([A-Za-z])[).:]*(?:\s+(.*?))?\.?", reply.strip(), re.DOTALL)
    if match is None:
        return None
    place = ascii_uppercase.index(match[1].upper())
    if place >= len(options) or match[2] not in (None, options[place]):
        return None
    return place


def one_line(error: Exception) -> str:
    """Name and text of an error, shortened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
