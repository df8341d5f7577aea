"""The option that a language model finds most likely, for models too small to answer by a letter.

An option is worth the sum of the log-probs of its tokens behind the question. They come from completions that echo
their prompt: vLLM and llama-cpp-python's server give them; llama.cpp's own server and OpenAI do not.
"""

from src.data.questions import Presentation
from src.rewards.client import Client

_COUNTING = ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,", "12, 13, 14, 15")  # every language model goes on so
_SURE = -1.5  # nats per token; a model that counts has about -0.1, log-probs of other tokens are below -3


def most_likely(client: Client, presentation: Presentation) -> int:
    """The index of the likeliest option. Raises one of `src.rewards.client.FAILURES`.

    What cannot be answered is hardly ever found likely: a caption that tells nothing is answered by chance.
    """
    prefix = client.config.template.replace("{prompt}", question_prompt(presentation))
    begun, _ = _echo(client, prefix)
    scores = [sum(_continuation(client, prefix, begun, option)) for option in presentation.options]
    return max(range(len(scores)), key=scores.__getitem__)


def check_log_probs(client: Client) -> None:
    """ValueError where a server's log-probs are not those of the tokens that they stand with.

    llama-cpp-python shifts them by one where a prompt does not begin with the model's first token.
    """
    prefix, rest = _COUNTING
    prefix = client.config.template.replace("{prompt}", prefix)
    logprobs = _continuation(client, prefix, _echo(client, prefix)[0], rest)
    if sum(logprobs) < _SURE * len(logprobs):
        raise ValueError("its log-probs are of other tokens; let caprl.template begin with the model's first token")


def question_prompt(presentation: Presentation) -> str:
    """The question as the model reads it, up to where an option follows."""
    return f"Caption of an image: {presentation.caption}\nQuestion: {presentation.question}\nAnswer:"


def _continuation(client: Client, prefix: str, begun: int, option: str) -> list[float]:
    """Log-probs of the tokens of `option` after `prefix`, which has `begun` tokens."""
    tokens, logprobs = _echo(client, prefix + ("" if prefix[-1].isspace() else " ") + option)
    if tokens <= begun:
        raise ValueError(f"{option!r} has no tokens of its own")
    return logprobs[begun - tokens :]  # from the end: servers may leave out the first token


def _echo(client: Client, text: str) -> tuple[int, list[float]]:
    """How many tokens a text has on the server, and the log-prob of each, the first of which may be missing."""
    reply = client.echo(text)
    logprobs = reply.choices[0].logprobs.token_logprobs
    return reply.usage.prompt_tokens, logprobs[: len(logprobs) - reply.usage.completion_tokens]
