"""Tiny pretrained folders for tests: tests/data/hf_tiny with tokenizer, chat template and settings of pixels."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TINY = Path(__file__).parent / "data/hf_tiny"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEEING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The ids that hf_tiny/qwen2_5_vl/config.json gives to its image tokens.
_SPECIALS = {
    "llama": {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2},
    "qwen2": {"<|endoftext|>": 190, "<|im_start|>": 191, "<|im_end|>": 192},
    "qwen2_5_vl": {
        "<|im_start|>": 145,
        "<|im_end|>": 146,
        "<|image_pad|>": 150,
        "<|vision_start|>": 151,
        "<|vision_end|>": 152,
    },
}
CORPUS = (
    "A dog runs over the grass. Two men play football, and a woman watches them.",
    "user\nassistant\nDescribe the image in one sentence. 0123456789 -'\"!?<>|_[](){}#&;:/=+*@%$^~`\\",
    "a red circle left of a small blue square above the large yellow triangle green purple orange white black",
    "THE QUICK BROWN FOX JUMPS OVER the lazy dog, the quick brown fox jumps",
)


def tiny_folder(kind: str, folder: Path) -> Path:
    """Copy the first layer of the tiny model `kind` to `folder`, with a byte-level BPE tokenizer that fits it."""
    shutil.copytree(TINY / kind, folder)
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("text_config")):
        if section is not None and "num_hidden_layers" in section:
            section["num_hidden_layers"] = 1  # graphs of one layer compile faster
    if kind == "qwen2_5_vl":
        config["vision_config"] |= {"depth": 2}  # one with windows, one without
    (folder / "config.json").write_text(json.dumps(config))
    specials = _SPECIALS[kind]
    first = 3 if kind == "llama" else 0
    room = (config.get("text_config") or config)["vocab_size"] if kind == "llama" else min(specials.values())
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=room - first - 4, show_progress=False))
    tree = json.loads(library.to_str())
    tree["model"]["vocab"] = {token: number + first for token, number in tree["model"]["vocab"].items()}
    if kind == "llama":
        tree["model"]["vocab"] |= specials  # tokenizers gives added tokens new ids unless they are words
    library = Tokenizer.from_str(json.dumps(tree))
    tree = json.loads(library.to_str())
    tree["added_tokens"] = [
        {"id": number, "content": token, "special": True, **_PLAIN} for token, number in specials.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    template = SEEING if kind == "qwen2_5_vl" else TEMPLATE
    settings = {"chat_template": template, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "qwen2_5_vl":
        write_preprocessing(folder)
    return folder


def write_preprocessing(folder: Path) -> None:
    """Write the settings of pixels that CLIP's folders hold."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    settings = {"image_mean": mean, "image_std": std, "rescale_factor": 1 / 255, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
