"""An answering model behind any OpenAI-compatible server: vLLM, llama.cpp's, llama-cpp-python's, OpenAI's own.

caprl.read=letter asks for the letter of an option through chat completions, the one interface that they all offer with
the model's own chat template. caprl.read=likelihood chooses the option with the largest sum of the log-probs of its
tokens after the question, for models too small to answer with a letter. The log-probs come from completions that echo
their prompt: vLLM and llama-cpp-python's server support them; llama.cpp's own server and OpenAI do not.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from src.config.schema import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.rewards.client import FAILURES, Client
from src.rewards.reply import NoOption, lettered
from src.runtime.progress import Progress, say

_PROBE = Presentation("a red ball on green grass", "what color is the ball", ("green", "red", CANNOT))
_COUNTING = ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", "12, 13, 14, 15")  # every language model continues like this
_SURE = -1.5  # nats per token; a model that counts has about -0.1, log-probs of other tokens are below -3


class ServerAnswerer:
    """Sends `concurrency` presentations at a time.

    Errors: InputError if a first question fails, or the server's log-probs do not belong to their tokens.
    """

    def __init__(self, config: CapRLConfig) -> None:
        self.config = config
        self.client = Client(config)
        self._failures_in_a_row = 0
        fix = "start the server, or correct caprl.base_url, caprl.model, caprl.read or OPENAI_API_KEY"
        self.client.check(lambda: self._request(_PROBE), fix)
        if config.read == "likelihood":
            self.client.check(self._check_log_probs, fix)

    def answer(self, presentations: Sequence[Presentation]) -> list[int | None]:
        """The index of the option chosen in each; None if the request failed, or the reply names no option.

        After 2 * concurrency failed requests in a row, the server counts as down, and the rest is not sent.
        """
        self._failures_in_a_row = 0
        errors: list[str] = []
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            replies = pool.map(lambda presentation: self._ask(presentation, errors), presentations)
            answers = list(Progress("questions", len(presentations), "question").over(replies))
        if None in answers:
            say(f"{answers.count(None)} of {len(answers)} questions got no answer; the last one: {errors[-1]}")
        return answers

    def _ask(self, presentation: Presentation, errors: list[str]) -> int | None:
        if self._failures_in_a_row < 2 * self.config.concurrency:
            try:
                answer = self._request(presentation)
                self._failures_in_a_row = 0
                return answer
            except NoOption as error:  # the server is alive
                self._failures_in_a_row = 0
                errors.append(f"the model {error}")
            except FAILURES as error:
                self._failures_in_a_row += 1
                errors.append(self.client.explain(error))
        return None

    def _request(self, presentation: Presentation) -> int:
        if self.config.read == "letter":
            return self.client.choose(prompt(presentation), presentation.options)
        # "Cannot be answered" is hardly ever likely: an uninformative caption scores at chance level.
        question = f"Caption of an image: {presentation.caption}\nQuestion: {presentation.question}\nAnswer:"
        scores = [sum(logprobs) for logprobs in self._continuations(question, presentation.options)]
        return max(range(len(scores)), key=scores.__getitem__)

    def _check_log_probs(self) -> None:
        """ValueError if log-probs belong to other tokens than those that they stand with.

        llama-cpp-python shifts them by one if a prompt does not begin with the model's first token.
        """
        (logprobs,) = self._continuations(_COUNTING[0], _COUNTING[1:])
        if sum(logprobs) < _SURE * len(logprobs):
            raise ValueError("log-probs belong to other tokens; let caprl.template begin with the model's first token")

    def _continuations(self, text: str, options: Sequence[str]) -> list[list[float]]:
        """Log-probs of the tokens of each option after `text`."""
        prefix = self.config.template.replace("{prompt}", text)
        begun, _ = self._echo(prefix)
        found = []
        for option in options:
            tokens, logprobs = self._echo(prefix + ("" if prefix[-1].isspace() else " ") + option)
            if tokens <= begun:
                raise ValueError(f"{option!r} has no tokens of its own")
            found.append(logprobs[begun - tokens :])  # from the end: servers may omit the first token
        return found

    def _echo(self, text: str) -> tuple[int, list[float]]:
        """The number of tokens of a text on the server, and their log-probs; that of the first may be missing."""
        reply = self.client.echo(text)
        logprobs = reply.choices[0].logprobs.token_logprobs
        return reply.usage.prompt_tokens, logprobs[: len(logprobs) - reply.usage.completion_tokens]


def prompt(presentation: Presentation) -> str:
    """The question as the model reads it, its options lettered A, B, C ..."""
    return (
        f"Caption of an image: {presentation.caption}\n\n"
        f"Question about the image: {presentation.question}\n{lettered(presentation.options)}\n\n"
        "Answer from the caption alone. Reply with the letter of the right option, and nothing else."
    )
