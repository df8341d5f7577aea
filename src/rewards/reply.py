"""Lettered options, and replies to them: the text after the model's thinking, and the option that it names."""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple
from unicodedata import normalize

_SHOWN = 120  # characters of a reply in a message
_WORDS = r"(?:think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad)"
# How models begin and end their thinking: <think>, <seed:think>, [THINK], <|begin_of_thought|>, <|START_THINKING|>,
# Kimi's triangles, the channels of gpt-oss and Gemma. A chat template may contain the beginning: an end alone counts.
_BEGIN = re.compile(
    rf"<(?:\w+:)?{_WORDS}>|\[{_WORDS}\]|<\|(?:begin_of_|start_)?{_WORDS}\|>|◁{_WORDS}▷"
    r"|<\|channel\|>(?:analysis|commentary)\b|<\|channel>thought\b|<unused94>|\Aanalysis(?=[A-Z]\w)",
    re.IGNORECASE,
)
_END = re.compile(
    rf"</(?:\w+:)?{_WORDS}>|\[/{_WORDS}\]|<\|(?:end_of_|end_|/){_WORDS}\|>|◁/{_WORDS}▷"
    r"|<\|channel\|>final\b[^<]*(?:<\|constrain\|>\w*)?<\|message\|>|<channel\|>|<unused95>",
    re.IGNORECASE,
)
_PLAIN_CHANNELS = re.compile(r"\Aanalysis(?=[A-Z]).*assistantfinal", re.DOTALL)  # of gpt-oss, without special tokens
# Special tokens that end a reply, except those of _WRAPPERS.
_LAST_TOKENS = re.compile(r"(?:(?:<\|(?!end_of_(?:box|solution|answer)\|)\w+\|>|</s>)\s*)+\Z")
_MARKS = re.compile(r"__|[*`$\"'“”‘’\u200b]")  # of emphasis, code, formulas and quotations
_WRAPPERS = re.compile(
    r"<(?P<tag>answer|solution)>(?P<a>.+)</(?P=tag)>"
    r"|<\|begin_of_(?P<token>box|solution|answer)\|>(?P<b>.+)<\|end_of_(?P=token)\|>"
    r"|\\(?:boxed|text|textbf|mathrm)\{(?P<c>.+)\}\.?",
    re.DOTALL | re.IGNORECASE,
)
_INTRODUCTION = re.compile(
    r"(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)*(?:answer|option|choice)(?:\s+is\b)?(?:\s*:\s*|\s+)"
    r"|(?:正确|最终)?(?:答案|选项?)\s*(?:是|为|:)*\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[\[(]?([A-Za-z])\s*[\]).:、。–—-]*(?:\s+(.*))?", re.DOTALL)


class Reply(NamedTuple):
    """text: after the thinking, or None; shown: the reply as messages quote it; cut: whether it reached its limit."""

    text: str | None
    shown: str
    cut: bool


class NoOption(Exception):
    """A reply names no option; the message quotes it."""


def read_reply(choice: Any, max_tokens: int) -> Reply:
    """A choice of a chat completion. Raises AttributeError or TypeError for unexpected shapes."""
    message = choice.message
    content = message.content or ""
    if isinstance(content, list):  # Mistral's parts: thinking and text
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    thinking = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    quotes = {"": content.strip(), "only thinking ": thinking, "a refusal ": getattr(message, "refusal", None)}
    shown = next((f'{kind}"{shortened(str(text))}"' for kind, text in quotes.items() if text), "nothing")
    cut = choice.finish_reason == "length"
    return Reply(after_thinking(content), shown + (f" (cut off after {max_tokens} tokens)" if cut else ""), cut)


def after_thinking(text: str) -> str | None:
    """The text after the thinking, or all of it without any; None if the thinking does not end, or nothing follows."""
    plain = _PLAIN_CHANNELS.match(text)
    ends = [plain.end()] if plain else [0, *(match.end() for match in _END.finditer(text))]
    said = text[ends[-1] :]
    return None if _BEGIN.search(said) else _LAST_TOKENS.sub("", said).strip() or None


def read_letter(reply: str, options: Sequence[str]) -> int | None:
    """The option that a reply names without saying more: "B", "(b)", "B. blue", "**B**", "The answer is B."; or None.

    Words after a letter must be those of its option. Nothing is guessed: "A red ball" does not choose the first option,
    nor does "the answer is a", which may be cut off.
    """
    text, introduced = _plain(reply), False
    while match := _WRAPPERS.fullmatch(text) or _INTRODUCTION.match(text):
        introduced |= match.re is _INTRODUCTION
        text = (text[match.end() :] if match.re is _INTRODUCTION else match["a"] or match["b"] or match["c"]).strip()
    named = _LETTER.fullmatch(text)
    if named is None or (introduced and text[0].islower()):
        return None
    place = ascii_uppercase.index(named[1].upper())
    fits = place < len(options) and (not named[2] or _words(named[2]) == _words(_plain(options[place])))
    return place if fits else None


def lettered(options: Sequence[str]) -> str:
    """The options on lines of their own, after A., B., C. ..."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options))


def _plain(text: str) -> str:
    return _MARKS.sub("", normalize("NFKC", text)).strip()


def _words(text: str) -> str:
    return text.rstrip(".。 ").casefold()


def shortened(text: str, most: int = _SHOWN) -> str:
    """A text in one printable line; if it is long, its beginning and end."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"
