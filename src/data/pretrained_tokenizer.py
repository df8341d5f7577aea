"""The tokenizer of a pretrained language model's folder, behind the interface of src.data.tokenizer.

Text never becomes a special token: a caption or a prompt that contains "<|im_end|>" holds those characters. Special
tokens come only from the folder's chat template, which Jinja2 renders in its sandbox.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from src.config.schema import Config
from src.data.model_folder import read_json
from src.data.tokenizer import TokenIds, Tokenizer
from src.runtime.errors import InputError, one_line
from src.runtime.files import whole_file

_IMAGE, _PROMPT = (
    "\ue000",
    "\ue001",
)  # of the private use area: they stand for image and prompt while a template renders


class PretrainedTokenizer(Tokenizer):
    """Text to ids and back.

    Attributes as those of Tokenizer; there is no UNK: unk_id is -1. vocab_size is the model's, which may exceed the
    tokenizer's; the rest is never sampled. pad_id equals eos_id: which tokens count is said by masks alone.
    """

    chinese = False
    unk_id = -1

    def __init__(self, folder: Path, prompt: str, *, sees: bool) -> None:
        """prompt: the user's words beside the image. sees: whether the model's own chat template places the image.

        Errors: InputError naming the file of the folder that is missing, damaged or does not fit.
        """
        self._text = read_json(folder, "tokenizer.json")
        settings = read_json(folder, "tokenizer_config.json", optional=True)
        added = {str(token["content"]): int(token["id"]) for token in self._text.get("added_tokens") or ()}
        self._library = _without_added(folder, self._text)
        self.vocab_size = _vocab_size(folder)
        known = self._library.get_vocab() | added
        if max(known.values()) >= self.vocab_size:
            raise InputError(
                f"{folder}: tokenizer.json has ids up to {max(known.values())}, but the model's vocab_size is "
                f"{self.vocab_size}; use the model's own tokenizer"
            )
        ends = _end_tokens(folder, settings, added)
        self.eos_id = self.pad_id = ends[0]
        self.allowed = np.zeros(self.vocab_size, bool)
        self.allowed[list(known.values())] = True
        self.allowed[list(added.values())] = False
        self.allowed[list(ends)] = True
        template = _chat_template(folder, settings)
        names = {key: _content(value) for key, value in settings.items() if key.endswith("_token")}
        before, after = self._prompt(folder, template, prompt, added, names, sees=sees)
        self.bos_id = after[-1]
        self.token_ids = TokenIds(self.pad_id, self.bos_id, ends, self.allowed, tuple(before), tuple(after[:-1]))
        facts = json.dumps([self._text, ends, self.vocab_size, before, after], sort_keys=True)
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def words_of_tokens(self, caption: str) -> list[int]:
        """Return which word, between blanks, each token of `encode` belongs to; a blank belongs to the next word."""
        encoding = self._library.encode(caption, add_special_tokens=False)
        return [max(0, len(caption[:end].split()) - 1) for _, end in encoding.offsets]

    def encode_targets(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the targets of teacher forcing, as Tokenizer.encode_targets does."""
        ids = np.full((len(captions), length), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        rows = [encoding.ids for encoding in self._library.encode_batch(list(captions), add_special_tokens=False)]
        for place, row in enumerate(rows):
            tokens = [*row, self.eos_id][:length]
            ids[place, : len(tokens)] = tokens
            mask[place, : len(tokens)] = True
        return ids, mask & self.allowed[ids], sum(len(row) > length for row in rows)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first end token, on one line."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in self.token_ids.eos:
                break
            kept.append(token)
        return " ".join(self._library.decode(kept, skip_special_tokens=False).split())

    def save(self, path: Path) -> None:
        """Write the folder's tokenizer.json; a crash leaves the old file or the new one, never half."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self._text, ensure_ascii=False), encoding="utf-8")

    def _prompt(
        self,
        folder: Path,
        template: str | None,
        prompt: str,
        added: Mapping[str, int],
        names: Mapping[str, Any],
        *,
        sees: bool,
    ) -> tuple[list[int], list[int]]:
        """Return the ids before and behind the image. Errors: InputError if the template does not place it once.

        names: texts of special tokens by their names, such as bos_token, which templates may use.
        """
        if template is None:  # begins as the tokenizer begins a text
            text = f"{_first_token(self._text, added)}{_IMAGE}\n{_PROMPT}"
        else:
            text = _render(folder, template, names, sees=sees)
        if sees:  # the template's own token for an image
            text = re.sub(re.escape(_image_token(folder, added)), _IMAGE, text)
        pieces = text.split(_IMAGE)
        if len(pieces) != 2 or _PROMPT not in text:
            raise InputError(f"{folder}: its chat template does not place one image and the prompt; use another model")
        before, after = (self._encode_template(piece, prompt, added) for piece in pieces)
        if not after:
            raise InputError(f"policy.prompt={prompt!r} leaves no token behind the image; give it words")
        return before, after

    def _encode_template(self, piece: str, prompt: str, added: Mapping[str, int]) -> list[int]:
        """Encode a part of a rendered template: added tokens are tokens there, but not in the prompt."""
        names = sorted(added, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", piece) if names else [piece]
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [added[part]] if number % 2 else self.encode(part.replace(_PROMPT, prompt))
        return ids


def load_pretrained_tokenizer(config: Config) -> PretrainedTokenizer:
    """Load the tokenizer of `policy.path`."""
    settings = config.policy
    return PretrainedTokenizer(Path(settings.path or ""), settings.prompt, sees=settings.kind == "qwen2_5_vl")


def _without_added(folder: Path, tree: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the library's tokenizer without the added tokens, which it would find in any text."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps({**tree, "added_tokens": [], "post_processor": None}))
    except Exception as error:  # the library raises bare Exception on broken JSON
        raise InputError(f"{folder / 'tokenizer.json'} is damaged: {one_line(error)}; copy it again") from None


def _vocab_size(folder: Path) -> int:
    config = read_json(folder, "config.json")
    size = (config.get("text_config") or config).get("vocab_size", config.get("vocab_size"))
    if type(size) is not int or size < 1:
        raise InputError(f"{folder / 'config.json'}: vocab_size={size} must be a whole number above 0; copy it again")
    return size


def _end_tokens(folder: Path, settings: Mapping[str, Any], added: Mapping[str, int]) -> tuple[int, ...]:
    """Return the ids of ends. The first ends the targets of CE: the tokenizer's own, or the first found."""
    name = _content(settings.get("eos_token"))
    ends: list[Any] = [added[name]] if isinstance(name, str) and name in added else []
    for file in ("generation_config.json", "config.json"):
        tree = read_json(folder, file, optional=True)
        for section in (tree, tree.get("text_config") or {}):
            value = section.get("eos_token_id")
            ends += value if isinstance(value, list) else [value] if value is not None else []
    size = _vocab_size(folder)
    if not ends or any(type(end) is not int or not 0 <= end < size for end in ends):
        raise InputError(
            f"{folder}: no usable end token in generation_config.json, config.json or tokenizer_config.json"
        )
    return tuple(dict.fromkeys(ends))


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the folder's chat template, from its own file or from tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = read_json(folder, "chat_template.json", optional=True).get(
        "chat_template", settings.get("chat_template")
    )
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _content(token: Any) -> Any:
    """Return the text of a token of tokenizer_config.json."""
    return token.get("content") if isinstance(token, dict) else token


def _first_token(tree: Mapping[str, Any], added: Mapping[str, int]) -> str:
    """Return the text of the special token that tokenizer.json puts before every text, or nothing."""
    ids = tokenizers.Tokenizer.from_str(json.dumps(tree)).encode("x").ids
    return next((text for text, number in added.items() if number == ids[0]), "") if ids else ""


def _render(folder: Path, template: str, names: Mapping[str, Any], *, sees: bool) -> str:
    """Render one turn of a user who shows an image, up to where the assistant's answer begins."""

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = fail
    content: Any = f"{_IMAGE}\n{_PROMPT}"
    if sees:
        content = [{"type": "image"}, {"type": "text", "text": _PROMPT}]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True, **names)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: its chat template fails: {one_line(error)}; copy the folder again") from None


def _image_token(folder: Path, added: Mapping[str, int]) -> str:
    """Return the text of the token that stands for an image in the model's own template."""
    wanted = read_json(folder, "config.json").get("image_token_id")
    name = next((text for text, number in added.items() if number == wanted), None)
    if name is None:
        raise InputError(
            f"{folder}: tokenizer.json has no token of image_token_id={wanted}; use the model's own tokenizer"
        )
    return name
