"""The tokenizer of a pretrained folder: text is never a special token, and special tokens are never sampled."""

import json

import numpy as np
import pytest
from tiny_models import tiny_folder

from src.data.pretrained_tokenizer import PretrainedTokenizer
from src.data.tokenizer import decode_completions
from src.runtime.errors import InputError

PROMPT = "Describe the image."


@pytest.fixture(params=["llama", "qwen2", "qwen2_5_vl"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return tiny_folder(kind, tmp_path / kind)


@pytest.fixture
def llama(tmp_path):
    return tiny_folder("llama", tmp_path / "llama")


def build(folder, prompt=PROMPT):
    return PretrainedTokenizer(folder, prompt, sees=folder.name == "qwen2_5_vl")


def change(folder, file, **changes):
    tree = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(tree | changes))


def specials(folder):
    return {
        token["id"]: token["content"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }


@pytest.mark.parametrize("text", ["<|im_end|>", "<|image_pad|>", "<image>", "<|endoftext|>", "a <|im_start|>b"])
def test_text_is_never_a_special_token(folder, text):
    tokenizer = build(folder)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(specials(folder)) and tokenizer.decode(ids) == text
    prompted = build(folder, text).token_ids
    plain = tokenizer.token_ids
    for name in specials(folder):  # as often as without it
        both = [(*given.before, *given.after, given.bos).count(name) for given in (prompted, plain)]
        assert both[0] == both[1]


def test_the_prompt_stands_in_the_chat_template(folder, kind):
    tokenizer = build(folder)
    names = specials(folder)

    def text(ids):
        parts = [names.get(token) or tokenizer._library.decode([token], skip_special_tokens=False) for token in ids]
        return "".join(parts)

    ids = tokenizer.token_ids
    seen = ("<|vision_start|>", "<|vision_end|>") if kind == "qwen2_5_vl" else ("", "\n")
    assert text(ids.before) == f"<|im_start|>user\n{seen[0]}"
    assert text([*ids.after, ids.bos]) == f"{seen[1]}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def test_only_words_and_ends_can_be_sampled(folder):
    tokenizer = build(folder)
    names = specials(folder)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(tokenizer.allowed) == tokenizer.vocab_size  # the model's table is larger than the tokenizer
    expected = (set(vocab.values()) - set(names)) | set(tokenizer.token_ids.eos)
    assert set(np.flatnonzero(tokenizer.allowed)) == expected and tokenizer.vocab_size > len(expected)


def test_an_end_target_counts_though_it_equals_padding(folder):
    tokenizer = build(folder)
    assert tokenizer.pad_id == tokenizer.eos_id
    rows = ["a dog", "a dog runs over the grass"]
    lengths = [len(tokenizer.encode(row)) for row in rows]
    ids, mask, cut = tokenizer.encode_targets(rows, lengths[1])
    assert mask.sum(1).tolist() == [lengths[0] + 1, lengths[1]] and cut == 0
    assert ids[0, lengths[0] :].tolist() == [tokenizer.eos_id] * (lengths[1] - lengths[0])
    texts, ended = decode_completions(tokenizer, tokenizer.token_ids.eos, ids, mask)
    assert texts == rows and ended.tolist() == [True, False]
    assert tokenizer.encode_targets(rows, 2)[2] == sum(length > 2 for length in lengths)


def test_end_tokens_of_every_file(llama):
    assert build(llama).token_ids.eos == (2,)
    change(llama, "generation_config.json", eos_token_id=[0, 2])
    assert build(llama).token_ids.eos == (2, 0)  # the tokenizer's own first: CE ends captions with it
    change(llama, "tokenizer_config.json", eos_token=None)
    change(llama, "config.json", eos_token_id=None)
    assert build(llama).token_ids.eos == (0, 2)  # those of generation_config.json alone
    change(llama, "generation_config.json", eos_token_id=None)
    with pytest.raises(InputError, match=r"no usable end token in generation_config\.json"):
        build(llama)
    change(llama, "generation_config.json", eos_token_id=199)
    with pytest.raises(InputError, match="no usable end token"):
        build(llama)


def test_the_words_that_tokens_belong_to(folder):
    tokenizer = build(folder)
    caption = "a dog runs over it"
    words = tokenizer.words_of_tokens(caption)
    pieces = [""] * 5
    for token, word in zip(tokenizer.encode(caption), words, strict=True):
        pieces[word] += tokenizer._library.decode([token])
    assert [piece.strip() for piece in pieces] == caption.split()


def test_templates_and_texts_begin_with_the_folders_own_token(llama):
    """As transformers renders Llama 3's template, and as its tokenizer begins a text without template."""
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ no_such_token }}"
    change(llama, "tokenizer_config.json", chat_template=template, bos_token={"content": "<|endoftext|>"})
    given = build(llama).token_ids
    assert given.before == (0,) and given.bos == 2
    change(llama, "tokenizer_config.json", chat_template=None)
    assert build(llama).token_ids.before == ()
    library = json.loads((llama / "tokenizer.json").read_text())
    pieces = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    (llama / "tokenizer.json").write_text(json.dumps(library | {"post_processor": template}))
    assert build(llama).token_ids.before == (0,)


@pytest.mark.parametrize(
    "kept",
    [
        {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<|endoftext|>"}},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
    ],
)  # fmt: skip
def test_padding_and_truncation_of_a_last_batch_are_left_out(llama, kept):
    plain = build(llama)
    library = json.loads((llama / "tokenizer.json").read_text())
    (llama / "tokenizer.json").write_text(json.dumps(library | kept))
    tokenizer = build(llama)
    for name in ("before", "after", "bos"):
        assert getattr(tokenizer.token_ids, name) == getattr(plain.token_ids, name)
    rows = ["a dog", "a dog runs over the grass and the lazy fox"]
    for ours, theirs in zip(tokenizer.encode_targets(rows, 40), plain.encode_targets(rows, 40)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 / 0 }}", "its chat template fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "its chat template fails"),
        ("{% for i in range(1000000) %}x{% endfor %}", "its chat template fails"),
        ([{"name": "tools", "template": "x"}], "its chat templates have none named default"),
        (["x"], "its chat templates have none named default"),
        (5, "its chat templates have none named default"),
    ],
)
def test_templates_that_fail_are_one_line(llama, template, message):
    change(llama, "tokenizer_config.json", chat_template=template)
    with pytest.raises(InputError, match=message):
        build(llama)


def test_a_template_in_bytes_of_no_text(llama):
    (llama / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja cannot be read"):
        build(llama)


def test_a_template_marks_what_the_assistant_says(llama):
    plain = build(llama).token_ids
    template = json.loads((llama / "tokenizer_config.json").read_text())["chat_template"]
    marked = "{%- generation -%}" + template + "{%- endgeneration %}"
    change(llama, "tokenizer_config.json", chat_template=marked)
    assert build(llama).token_ids.before == plain.before and build(llama).token_ids.after == plain.after


def test_a_model_that_sees_needs_its_template(tmp_path):
    folder = tiny_folder("qwen2_5_vl", tmp_path / "qwen2_5_vl")
    change(folder, "tokenizer_config.json", chat_template=None)
    with pytest.raises(InputError, match="has no chat template"):
        build(folder)


@pytest.mark.parametrize(
    "added",
    [
        [{"id": 1}],
        [{"content": "<x>", "id": "1"}],
        {"a": 1},
        [{"content": "", "id": 1}],
        [{"content": "x", "id": -1}],
    ],
)
def test_unusable_added_tokens_are_named(llama, added):
    library = json.loads((llama / "tokenizer.json").read_text())
    (llama / "tokenizer.json").write_text(json.dumps(library | {"added_tokens": added}))
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged: added_tokens needs contents and ids"):
        build(llama)


def test_templates_without_a_place_are_refused(llama):
    change(llama, "tokenizer_config.json", chat_template="{{ messages[0]['content'] * 2 }}")
    with pytest.raises(InputError, match="does not place one image and the prompt"):
        build(llama)
    change(llama, "tokenizer_config.json", chat_template="{{ raise_exception('no images here') }}")
    with pytest.raises(InputError, match="its chat template fails: no images here"):
        build(llama)
    change(llama, "tokenizer_config.json", chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="its chat template fails: access to attribute '__class__'"):  # the sandbox
        build(llama)
    change(llama, "tokenizer_config.json", chat_template=None)
    assert build(llama).token_ids.before == ()  # no template: the image, a line break, the prompt
    with pytest.raises(InputError, match="leaves no token after the image"):
        (llama / "chat_template.jinja").write_text("{{ messages[0]['content'][2:] }}{{ messages[0]['content'][:1] }}")
        build(llama)


def test_unusable_tokenizers_are_named(llama):
    change(llama, "config.json", vocab_size=50)
    with pytest.raises(InputError, match=r"tokenizer.json has ids up to \d+, but the model's vocab_size is 50"):
        build(llama)
    (llama / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged"):
        build(llama)
    (llama / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        build(llama)
