"""The prompt that a pretrained folder's chat template makes, with places for the user's words and for the image.

Templates are programs, and not trusted: Jinja2 runs them in its sandbox.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from src.data.model_folder import read_json
from src.runtime.errors import InputError, one_line

IMAGE, PROMPT = "\ue000", "\ue001"  # of the private use area: they stand for image and prompt while a template renders


def render_prompt(folder: Path, settings: Mapping[str, Any], first: str, image: str | None) -> str:
    """Return the text of one turn of a user who shows an image, with IMAGE and PROMPT in their places.

    settings: of tokenizer_config.json. first: what the prompt begins with if there is no template. image: the token
    with which the model's own template shows an image; None: the image stands before the user's words.
    Errors: InputError naming what is missing or fails.
    """
    template = _template(folder, settings)
    if template is None and image is not None:
        raise InputError(f"{folder} has no chat template, which says where the image stands; copy it again")
    if template is None:
        return f"{first}{IMAGE}\n{PROMPT}"
    special = {**read_json(folder, "special_tokens_map.json", optional=True), **settings}
    names = {key: token_text(value) for key, value in special.items() if key.endswith("_token")}
    text = _render(folder, template, names, sees=image is not None)
    return text if image is None else text.replace(image, IMAGE)


def token_text(token: Any) -> Any:
    """Return the text of a token of tokenizer_config.json."""
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the folder's chat template, from its own file or from tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {one_line(error)}; copy it again") from None
    template = read_json(folder, "chat_template.json", optional=True).get(
        "chat_template", settings.get("chat_template")
    )
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", "")
    if template is not None and (not isinstance(template, str) or not template):
        raise InputError(f"{folder}: its chat templates have none named default; copy the folder again")
    return template


def _render(folder: Path, template: str, names: Mapping[str, Any], *, sees: bool) -> str:
    """Render one turn of a user who shows an image, up to where the assistant's answer begins."""

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = fail
    # transformers' tag around what the assistant says.
    template = re.sub(r"(\{%-?\s*)generation(?=\s*-?%\})", r"\1if true", template)
    template = re.sub(r"(\{%-?\s*)endgeneration(?=\s*-?%\})", r"\1endif", template)
    content: Any = f"{IMAGE}\n{PROMPT}"
    if sees:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True, **names)
    except Exception as error:  # a template is a program: it can divide by zero, or never end its recursion
        raise InputError(f"{folder}: its chat template fails: {one_line(error)}; copy the folder again") from None
