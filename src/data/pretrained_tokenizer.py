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

import numpy as np
import tokenizers

from src.config.schema import Config
from src.data.chat_template import IMAGE, PROMPT, render_prompt, token_text
from src.data.model_folder import read_json
from src.data.tokenizer import TokenIds, Tokenizer
from src.runtime.errors import InputError, one_line
from src.runtime.files import whole_file


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
        added = _added_tokens(folder, self._text)
        self._library = _without_added(folder, self._text)
        self.vocab_size = _vocab_size(folder)
        known = self._library.get_vocab() | added
        if max(known.values(), default=-1) >= self.vocab_size or not known:
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
        before, after = self._prompt(folder, settings, prompt, added, sees=sees)
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
        self, folder: Path, settings: Mapping[str, Any], prompt: str, added: Mapping[str, int], *, sees: bool
    ) -> tuple[list[int], list[int]]:
        """Return the ids before and after the image. Errors: InputError if the template does not place it once."""
        image = _image_token(folder, added) if sees else None
        text = render_prompt(folder, settings, _first_token(self._text, added), image)
        pieces = text.split(IMAGE)
        if len(pieces) != 2 or PROMPT not in text:
            raise InputError(f"{folder}: its chat template does not place one image and the prompt; use another model")
        before, after = (self._encode_template(piece, prompt, added) for piece in pieces)
        if not after:
            raise InputError(f"policy.prompt={prompt!r} leaves no token after the image; give it words")
        return before, after

    def _encode_template(self, piece: str, prompt: str, added: Mapping[str, int]) -> list[int]:
        """Encode a part of a rendered template: added tokens are tokens there, but not in the prompt."""
        names = sorted(added, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", piece) if names else [piece]
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [added[part]] if number % 2 else self.encode(part.replace(PROMPT, prompt))
        return ids


def load_pretrained_tokenizer(config: Config) -> PretrainedTokenizer:
    """Load the tokenizer of `policy.path`."""
    settings, folder = config.policy, Path(config.policy.path or "")
    family = read_json(folder, "config.json").get("model_type")
    if (family == "qwen2_5_vl") != (settings.kind == "qwen2_5_vl"):
        raise InputError(
            f"policy.kind={settings.kind} does not fit {folder}, whose model_type is {family}: set qwen2_5_vl for "
            "Qwen2.5-VL, and prefix_lm for Llama and Qwen2"
        )
    return PretrainedTokenizer(folder, settings.prompt, sees=settings.kind == "qwen2_5_vl")


def _without_added(folder: Path, tree: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the library's tokenizer without the added tokens, which it would find in any text."""
    try:
        # Fine-tuned folders often keep the padding and the truncation of their last batch, which are not the model's.
        bare: dict[str, Any] = {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
        return tokenizers.Tokenizer.from_str(json.dumps({**tree, **bare}))
    except Exception as error:  # the library raises bare Exception on broken JSON
        raise InputError(f"{folder / 'tokenizer.json'} is damaged: {one_line(error)}; copy it again") from None


def _added_tokens(folder: Path, tree: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens that no text is made of, by their contents."""
    tokens = tree.get("added_tokens") or []
    try:
        added = {token["content"]: token["id"] for token in tokens}
    except (TypeError, KeyError):
        added = {"": -1}
    usable = all(isinstance(text, str) and text and type(number) is int for text, number in added.items())
    if not usable or min(added.values(), default=0) < 0:
        raise InputError(f"{folder / 'tokenizer.json'} is damaged: added_tokens needs contents and ids; copy it again")
    return added


def _vocab_size(folder: Path) -> int:
    config = read_json(folder, "config.json")
    size = (config.get("text_config") or config).get("vocab_size", config.get("vocab_size"))
    if type(size) is not int or size < 1:
        raise InputError(f"{folder / 'config.json'}: vocab_size={size} must be a whole number above 0; copy it again")
    return size


def _end_tokens(folder: Path, settings: Mapping[str, Any], added: Mapping[str, int]) -> tuple[int, ...]:
    """Return the ids of ends. The first ends the targets of CE: the tokenizer's own, or the first found."""
    name = token_text(settings.get("eos_token"))
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


def _first_token(tree: Mapping[str, Any], added: Mapping[str, int]) -> str:
    """Return the text of the special token that tokenizer.json puts before every text, or nothing."""
    ids = tokenizers.Tokenizer.from_str(json.dumps({**tree, "padding": None, "truncation": None})).encode("x").ids
    return next((text for text, number in added.items() if number == ids[0]), "") if ids else ""


def _image_token(folder: Path, added: Mapping[str, int]) -> str:
    """Return the text of the token that stands for an image in the model's own template."""
    wanted = read_json(folder, "config.json").get("image_token_id")
    name = next((text for text, number in added.items() if number == wanted), None)
    if name is None:
        raise InputError(
            f"{folder}: tokenizer.json has no token of image_token_id={wanted}; use the model's own tokenizer"
        )
    return name
