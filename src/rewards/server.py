"""The client of OpenAI-compatible servers, and the answering model behind one: vLLM, llama.cpp's, OpenAI's own, ...

The client adapts to a server that rejects a parameter: it omits or renames it from then on.

caprl.read=letter asks for the letter of an option through chat completions, the one interface that all servers offer
with the model's own chat template. caprl.read=likelihood chooses the option with the largest sum of the log-probs of
its tokens after the question, for models too small to answer with a letter. The log-probs come from completions that
echo their prompt: vLLM and llama-cpp-python's server support them; llama.cpp's own server and OpenAI do not.
"""

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, NotFoundError, OpenAI, OpenAIError
from openai.types import Completion

from src.config.schema import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.rewards.proxy import masked, proxy_for
from src.rewards.reply import NoOption, Reply, lettered, read_letter, read_reply, shortened
from src.runtime.errors import InputError
from src.runtime.progress import Progress, say

# How a request may fail: with an error of the client, or a reply of another shape than the interface defines.
FAILURES = (OpenAIError, AttributeError, IndexError, TypeError, ValueError)
THINKS = (
    "if the model thinks first, raise caprl.max_tokens, or turn its thinking off, as "
    """caprl.extra_body='{"chat_template_kwargs": {"enable_thinking": false}}'"""
)
_UNKNOWN = r"unsupported|n.t support|unknown|unrecogni[sz]ed|unexpected|forbidden|not (?:permitted|allowed)|deprecated"
# For each parameter, what a rejection says, and the new name (None: the parameter is omitted). A max_tokens that is
# rejected for its size is not renamed.
_REJECTIONS = {
    "max_tokens": (rf"(?is)(?=.*max_tokens).*(?:{_UNKNOWN})", "max_completion_tokens"),
    "temperature": ("(?i)temperature", None),
}
_PROBE = Presentation("a red ball on green grass", "what color is the ball", ("green", "red", CANNOT))
_COUNTING = ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", "12, 13, 14, 15")  # every language model continues like this
_SURE = -1.5  # nats per token; a model that counts has about -0.1, log-probs of other tokens are below -3


class Client:
    """Sends requests with the timeout and retries of `caprl`; threads may share it.

    Errors: InputError if an environment variable makes requests impossible.
    """

    def __init__(self, config: CapRLConfig) -> None:
        self.config = config
        self._proxy = proxy_for(config.base_url)
        self._extra = json.loads(config.extra_body) if config.extra_body else None
        self._rejected: frozenset[str] = frozenset()
        self._lock = Lock()
        key = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("OPENAI_API_KEY holds characters that no key contains; copy it again")
        proxy, certificates = self._proxy.url if self._proxy else None, _certificates(config.base_url)
        try:
            self._client = OpenAI(
                base_url=config.base_url,
                api_key=key or "none",  # local servers need none, but the client requires one
                timeout=config.timeout,
                max_retries=config.retries,
                http_client=DefaultHttpxClient(trust_env=False, proxy=proxy, verify=certificates),
            )
        except Exception as error:  # bad URLs raise many kinds of errors
            raise InputError(f"caprl.base_url={masked(config.base_url)}: {self.explain(error)}") from None

    def check(self, ask: Callable[[], object], fix: str) -> None:
        """Ask a first question. Errors: InputError if the request fails, or the reply names no option."""
        server = f"caprl.base_url={masked(self.config.base_url)}: model {self.config.model}"
        try:
            ask()
        except NoOption as error:
            raise InputError(f"{server} {error}; {THINKS}; otherwise choose another caprl.model") from None
        except FAILURES as error:
            raise InputError(f"{server} does not answer ({self.explain(error)}); {fix}") from None

    def choose(self, content: str | list, options: Sequence[str]) -> int:
        """The index of the option whose letter the model replies. Raises NoOption, or one of FAILURES."""
        reply = self.chat(content)
        place = read_letter(reply.text or "", options)
        if place is None:
            raise NoOption(f"names no option: it replied {reply.shown}")
        return place

    def chat(self, content: str | list, *, temperature: float = 0.0, more_tokens: int = 0) -> Reply:
        """The reply to a text or list of parts, of at most caprl.max_tokens + more_tokens. Raises one of FAILURES."""
        most = self.config.max_tokens + more_tokens
        messages = [{"role": "user", "content": content}]
        create = self._client.chat.completions.create
        reply = self._send(create, messages=messages, temperature=temperature, max_tokens=most)
        return read_reply(reply.choices[0], most)

    def echo(self, text: str) -> Completion:
        """The text itself with its log-probs, and one more token. Raises one of FAILURES."""
        create = self._client.completions.create
        return self._send(create, prompt=text, echo=True, logprobs=1, max_tokens=1, temperature=0.0)

    def explain(self, error: Exception) -> str:
        """An error in one line, with the proxy in use, if any."""
        text = f"{type(error).__name__}: {shortened(str(error), 200)}"
        if isinstance(error, APIConnectionError) and error.__cause__ is not None:
            text += f" ({shortened(str(error.__cause__))})"
        if isinstance(error, NotFoundError):
            text += "; most servers need a caprl.base_url that ends with /v1"
        return text + (f"; sent through {self._proxy}: add the host to no_proxy to bypass it" if self._proxy else "")

    def _send(self, create: Callable[..., Any], **parameters: Any) -> Any:
        """Send a request, and repeat it without the parameters that the server rejects; each changes at most once."""
        rejected = self._rejected
        while True:
            names = {name: _REJECTIONS[name][1] if name in rejected else name for name in parameters}
            accepted = {new: parameters[name] for name, new in names.items() if new}
            try:
                reply = create(model=self.config.model, extra_body=self._extra, **accepted)
                break
            except APIStatusError as error:
                text = error.response.text if error.status_code < 500 else ""
                named = {name for name, (pattern, _) in _REJECTIONS.items() if re.search(pattern, text)}
                if not named & parameters.keys() - rejected:
                    raise
                rejected |= named & parameters.keys()
        with self._lock:
            if "temperature" in rejected - self._rejected:
                say("the server rejects the temperature and uses its own default, so replies may vary")
            self._rejected |= rejected
        return reply


def _certificates(url: str) -> ssl.SSLContext | bool:
    """What a server's certificate is checked against. Errors: InputError naming the variable."""
    given = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)}
    if not url.lower().startswith("https:") or not given:
        return True
    try:
        return ssl.create_default_context(cafile=given.get("SSL_CERT_FILE"), capath=given.get("SSL_CERT_DIR"))
    except OSError as error:
        variables = " ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"{variables}: certificates cannot be read ({error}); correct or unset it") from None


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
        scores = list(map(sum, self._continuations(question, presentation.options)))
        return scores.index(max(scores))

    def _check_log_probs(self) -> None:
        """ValueError if log-probs belong to other tokens than those that they stand with.

        llama-cpp-python shifts them by one if a prompt does not begin with the model's first token.
        """
        (logprobs,) = self._continuations(_COUNTING[0], _COUNTING[1:])
        if sum(logprobs) < _SURE * len(logprobs):
            raise ValueError("log-probs belong to other tokens; let caprl.template begin with the model's first token")

    def _continuations(self, text: str, options: Sequence[str]) -> Iterator[list[float]]:
        """Log-probs of the tokens of each option after `text`."""
        prefix = self.config.template.replace("{prompt}", text)
        begun, _ = self._echo(prefix)
        for option in options:
            tokens, logprobs = self._echo(prefix + ("" if prefix[-1].isspace() else " ") + option)
            if tokens <= begun:
                raise ValueError(f"{option!r} has no tokens of its own")
            yield logprobs[begun - tokens :]  # from the end: servers may omit the first token

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
