"""The one place from which servers are asked: any OpenAI-compatible one, as it wants to be asked.

Servers differ in the parameters that they take. One that refuses a parameter names it: it is left out or renamed from
then on, for every request of this client.
"""

import json
import os
import re
import ssl
from collections.abc import Callable
from threading import Lock
from typing import Any

from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, NotFoundError, OpenAI, OpenAIError
from openai.types import Completion

from src.config.schema import CapRLConfig
from src.rewards.proxy import masked, proxy_for
from src.rewards.reply import Reply, read_reply, shortened
from src.runtime.errors import InputError
from src.runtime.progress import say

# What a request may end in: an error of the client, or a reply of another shape than the interface has.
FAILURES = (OpenAIError, AttributeError, IndexError, TypeError, ValueError)
THINKS = (
    "if the model thinks first, raise caprl.max_tokens, or turn its thinking off, as "
    """caprl.extra_body='{"chat_template_kwargs": {"enable_thinking": false}}'"""
)
_UNKNOWN = r"unsupported|n.t support|unknown|unrecogni[sz]ed|unexpected|forbidden|not (?:permitted|allowed)|deprecated"
# What the message of a refusal holds, by the parameter that is then left out (None) or renamed. A max_tokens that is
# refused for its size is not renamed.
_REFUSALS = {
    "max_tokens": (rf"(?is)(?=.*max_tokens).*(?:{_UNKNOWN})", "max_completion_tokens"),
    "temperature": ("(?i)temperature", None),
}


class Client:
    """Requests with the timeout and retries of `caprl`; threads may share it. Asks nothing yet.

    Errors: InputError where a variable of the environment is in the way.
    """

    def __init__(self, config: CapRLConfig) -> None:
        self.config = config
        self._proxy = proxy_for(config.base_url)
        self._extra = json.loads(config.extra_body) if config.extra_body else None
        self._refused: frozenset[str] = frozenset()
        self._lock = Lock()
        key = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("OPENAI_API_KEY holds characters that no key has: copy it again")
        proxy, certificates = self._proxy.url if self._proxy else None, _certificates(config.base_url)
        try:
            self._client = OpenAI(
                base_url=config.base_url,
                api_key=key or "none",  # a local server wants none, the client does
                timeout=config.timeout,
                max_retries=config.retries,
                http_client=DefaultHttpxClient(trust_env=False, proxy=proxy, verify=certificates),
            )
        except Exception as error:  # URLs are refused by many kinds of errors
            raise InputError(f"caprl.base_url={masked(config.base_url)}: {self.explain(error)}") from None

    def chat(self, content: str | list, *, temperature: float = 0.0, more_tokens: int = 0) -> Reply:
        """The reply to one message. Raises one of FAILURES.

        content: text, or the interface's list of parts; more_tokens: how far the reply may go beyond caprl.max_tokens.
        """
        most = self.config.max_tokens + more_tokens
        messages = [{"role": "user", "content": content}]
        create = self._client.chat.completions.create
        reply = self._send(create, messages=messages, temperature=temperature, max_tokens=most)
        return read_reply(reply.choices[0], most)

    def echo(self, text: str) -> Completion:
        """The text itself with its log-probs, and one token more. Raises one of FAILURES."""
        create = self._client.completions.create
        return self._send(create, prompt=text, echo=True, logprobs=1, max_tokens=1, temperature=0.0)

    def explain(self, error: Exception) -> str:
        """An error in one line, and the proxy that the server is asked through, if any."""
        text = f"{type(error).__name__}: {shortened(str(error), 200)}"
        if isinstance(error, APIConnectionError) and error.__cause__ is not None:
            text += f" ({shortened(str(error.__cause__))})"
        if isinstance(error, NotFoundError):
            text += "; most servers want a caprl.base_url that ends with /v1"
        if self._proxy:
            text += f"; it is asked through {self._proxy}: a host in no_proxy is asked directly"
        return text

    def _send(self, create: Callable[..., Any], **parameters: Any) -> Any:
        """What `create` gives, with the parameters that the server takes: each is changed at most once."""
        refused = self._refused
        while True:
            names = {name: _REFUSALS[name][1] if name in refused else name for name in parameters}
            taken = {new: parameters[name] for name, new in names.items() if new}
            try:
                reply = create(model=self.config.model, extra_body=self._extra, **taken)
            except APIStatusError as error:
                more = _refused_by(error) & parameters.keys() - refused
                if not more:
                    raise
                refused |= more
                continue
            self._remember(refused)
            return reply

    def _remember(self, refused: frozenset[str]) -> None:
        with self._lock:
            if "temperature" in refused - self._refused:
                say("the server refuses our temperature and takes its own default: its replies may vary")
            self._refused |= refused


def _refused_by(error: APIStatusError) -> set[str]:
    """The parameters that a refusal is about, as far as _REFUSALS knows them."""
    if not 400 <= error.status_code < 500:
        return set()
    return {name for name, (pattern, _) in _REFUSALS.items() if re.search(pattern, error.response.text)}


def _certificates(url: str) -> ssl.SSLContext | bool:
    """What a server's certificate is checked against. Errors: InputError naming the variable."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    file, folder = (os.environ.get(name) or None for name in names)
    if not url.lower().startswith("https:") or not (file or folder):
        return True
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        given = " ".join(f"{name}={value}" for name, value in zip(names, (file, folder)) if value)
        raise InputError(f"{given}: certificates cannot be read ({error}); correct or unset it") from None
