"""The one client of OpenAI-compatible servers. It adapts to the parameters that a server accepts.

A server that rejects a parameter names it: the client omits or renames it from then on.
"""

import json
import os
import re
import ssl
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, NotFoundError, OpenAI, OpenAIError
from openai.types import Completion

from src.config.schema import CapRLConfig
from src.rewards.proxy import masked, proxy_for
from src.rewards.reply import NoOption, Reply, read_letter, read_reply, shortened
from src.runtime.errors import InputError
from src.runtime.progress import say

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
        """The index of the option whose letter the model replies. Raises NoOption, or one of FAILURES.

        content: of the message that asks: text, or the interface's list of parts.
        """
        reply = self.chat(content)
        place = read_letter(reply.text or "", options)
        if place is None:
            raise NoOption(f"names no option: it replied {reply.shown}")
        return place

    def chat(self, content: str | list, *, temperature: float = 0.0, more_tokens: int = 0) -> Reply:
        """The reply to one message, of up to caprl.max_tokens + more_tokens. Raises one of FAILURES."""
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
