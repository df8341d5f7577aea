"""An answering model behind any OpenAI-compatible server: vLLM, llama.cpp's, llama-cpp-python's, OpenAI's own.

It is asked for the letter of an option through chat completions, the one interface that all of them give with the
model's own chat template; or for the likelihood of every option (src/rewards/likelihood.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from string import ascii_uppercase

from src.config.schema import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.rewards.client import FAILURES, THINKS, Client
from src.rewards.likelihood import check_log_probs, most_likely
from src.rewards.proxy import masked
from src.rewards.reply import NoOption, read_letter
from src.runtime.errors import InputError
from src.runtime.progress import Progress, say

_PROBE = Presentation("a red ball on green grass", "what color is the ball", ("green", "red", CANNOT))


class ServerAnswerer:
    """Asks `concurrency` presentations at a time, with the client's timeout and retries for each request.

    Errors: InputError where a first question fails.
    """

    def __init__(self, config: CapRLConfig) -> None:
        self.config = config
        self.client = Client(config)
        self._row_of_failures = 0
        server = f"caprl.base_url={masked(config.base_url)}: model {config.model}"
        try:
            self._request(_PROBE)
            if config.read == "likelihood":
                check_log_probs(self.client)
        except NoOption as error:
            raise InputError(f"{server} {error}; {THINKS}; else name another caprl.model") from None
        except FAILURES as error:
            raise InputError(
                f"{server} does not answer ({self.client.explain(error)}); "
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
            say(f"{answers.count(None)} of {len(answers)} questions got no answer; the last one: {errors[-1]}")
        return answers

    def _ask(self, presentation: Presentation, errors: list[str]) -> int | None:
        if self._row_of_failures >= 2 * self.config.concurrency:
            return None
        try:
            answer = self._request(presentation)
        except NoOption as error:  # the server lives
            errors.append(f"the model {error}")
            answer = None
        except FAILURES as error:
            self._row_of_failures += 1
            errors.append(self.client.explain(error))
            return None
        self._row_of_failures = 0
        return answer

    def _request(self, presentation: Presentation) -> int:
        if self.config.read == "likelihood":
            return most_likely(self.client, presentation)
        return choose(self.client, prompt(presentation), presentation.options)


def choose(client: Client, content: str | list, options: Sequence[str]) -> int:
    """The index of the option whose letter the model replies. Raises NoOption, or one of FAILURES.

    content: of the message that asks: text, or the interface's list of parts.
    """
    reply = client.chat(content)
    place = read_letter(reply.text or "", options)
    if place is None:
        raise NoOption(f"names no option: it replied {reply.shown}")
    return place


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
