"""The words of a data set's captions are kept, and made again where the file is damaged."""

import json

import pytest

from src.data.words import Words
from src.runtime.errors import InputError


def tokens(name, tokenize) -> Words:
    """Words that `tokenize` makes."""
    return type("Made", (Words,), {"tokenize": staticmethod(tokenize)})("en", name)


def test_cache(tmp_path):
    calls = []

    def tokenize(rows):
        calls.append(len(rows))
        return [row.lower().strip(" .!?") for row in rows]

    def cached_tokens(captions, tokenize, name, folder):
        return tokens(name, tokenize).tokenize_images(captions, folder)

    captions = {7: ["A dog.", "The dog!"], 3: [], 5: ["Caf\u00e9?", "lone \ud800"]}
    expected = {7: ["a dog", "the dog"], 3: [], 5: ["caf\u00e9", "lone \ud800"]}
    assert cached_tokens(captions, tokenize, "ptb", None) == expected
    folder = tmp_path / "new" / "cache"
    assert cached_tokens(captions, tokenize, "ptb", folder) == expected
    (path,) = folder.iterdir()
    calls.clear()
    assert cached_tokens(captions, tokenize, "ptb", folder) == expected and not calls
    assert list(cached_tokens(captions, tokenize, "ptb", folder)) == [7, 3, 5]
    for damage in [
        "",
        '[["a dog"',
        json.dumps([["a dog"], [], ["x", "y"]]),
        "{}",
        json.dumps([["a", 1], [], ["x", "y"]]),
    ]:
        path.write_text(damage)
        assert cached_tokens(captions, tokenize, "ptb", folder) == expected
    assert calls == [4] * 5
    assert cached_tokens({7: ["A dog.", "The cat!"]}, tokenize, "ptb", folder) == {7: ["a dog", "the cat"]}
    assert len(list(folder.iterdir())) == 2
    assert cached_tokens(captions, lambda rows: [row.upper() for row in rows], "other", folder)[7] == [
        "A DOG.",
        "THE DOG!",
    ]


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file: .*; choose another output_root"):
        tokens("ptb", list).tokenize_images({1: ["a"]}, tmp_path / "file")
