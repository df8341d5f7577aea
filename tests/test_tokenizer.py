"""Both vocabularies: ids worked out by hand, targets and masks, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from src.data.tokenizer import build_word_tokenizer, build_wordpiece_tokenizer, load_tokenizer
from src.runtime.errors import InputError

BERT = Path(__file__).resolve().parents[1] / "../shared/data/vocab/bert-base-uncased-vocab.txt"
PIECES = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "skate",
    "##board",
    "##ing",
    "man",
    "'",
    "s",
    ".",
]


@pytest.fixture
def words():
    # a 4, cat 2, dog 2, runs 1: ids 4, 5, 6
    return build_word_tokenizer(["a dog runs", "a cat", "a dog", "a cat"], min_count=2)


@pytest.fixture
def pieces(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return build_wordpiece_tokenizer(tmp_path / "vocab.txt")


def test_a_vocabulary_as_windows_writes_it_is_the_same(pieces, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*PIECES, ""]).encode("utf-8-sig"))
    assert build_wordpiece_tokenizer(tmp_path / "vocab.txt").fingerprint == pieces.fingerprint


def test_word_ids_by_count_then_alphabet(words):
    assert (words.vocab_size, words.pad_id, words.unk_id, words.bos_id, words.eos_id) == (7, 0, 1, 2, 3)
    assert words.encode("a cat dog runs Dog") == [4, 5, 6, 1, 6]
    assert words.encode("") == []
    assert words.decode([2, 4, 1, 6, 0, 5, 3, 4]) == "a dog cat"
    assert words.allowed.tolist() == [False, False, False, True, True, True, True]
    assert words.fingerprint == hashlib.sha256(b"[PAD]\n[UNK]\n[BOS]\n[EOS]\na\ncat\ndog").hexdigest()


def test_words_of_tokens(words, pieces):
    assert words.words_of_tokens("a cat dog runs") == [0, 1, 2, 3] and words.words_of_tokens("") == []
    # a | man ' s | skate ##board ##ing . by the blanks of the caption
    assert pieces.words_of_tokens("A man's Skateboarding .") == [0, 1, 1, 1, 2, 2, 2, 3]


def test_order_of_captions_does_not_matter(words):
    assert build_word_tokenizer(["a dog", "a cat", "a cat", "a dog runs"], 2).fingerprint == words.fingerprint
    assert build_word_tokenizer(["a cat", "a dog", "runs"], 1).fingerprint != words.fingerprint


def test_wordpiece(pieces):
    assert (pieces.pad_id, pieces.unk_id, pieces.bos_id, pieces.eos_id) == (0, 2, 3, 4)
    ids = pieces.encode("A man's Skateboarding .")
    assert ids == [6, 10, 11, 12, 7, 8, 9, 13]
    assert pieces.decode(np.array([3, *ids, 4, 6])) == "a man ' s skateboarding ."  # no clean-up before the full stop
    assert np.flatnonzero(pieces.allowed).tolist() == [4, 6, 7, 8, 9, 10, 11, 12, 13]


def test_text_cannot_name_a_special_token(words, pieces):
    assert words.encode("a [EOS] [PAD] dog") == [4, 1, 1, 6]
    assert 4 not in pieces.encode("a [SEP] man") and 0 not in pieces.encode("[PAD]")


def test_targets(words):
    captions = ["a dog", "a dog a", "a dog a cat", "runs cat", ""]
    ids, mask, cut = words.encode_targets(captions, 3)
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert ids.tolist() == [[4, 6, 3], [4, 6, 4], [4, 6, 4], [1, 5, 3], [3, 0, 0]]
    # UNK cannot be produced and PAD does not count; a caption that fills its row, or is cut, has no EOS.
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0]]
    assert cut == 1


@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_save_and_load(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.allowed == tokenizer.allowed).all()
    caption = "a skateboarding dog"
    assert again.encode(caption) == tokenizer.encode(caption)
    assert again.decode(again.encode(caption)) == tokenizer.decode(tokenizer.encode(caption))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "content,words",
    [
        ("\n".join(PIECES).replace("[SEP]", "sep").encode(), r"tokenizer\.vocab=.*\[SEP\] is missing"),
        ("\n".join([*PIECES, "man"]).encode(), r"line 15 is blank or repeats a token \('man'\)"),
        ("\n".join([*PIECES, "", "b"]).encode(), "line 15 is blank"),
        (b"[PAD]\n\xff\xfe", "cannot be read"),
        (b"", "line 1 is blank"),
    ],
    ids=["special", "twice", "blank", "encoding", "empty"],
)
def test_bad_vocabulary(tmp_path, content, words):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        build_wordpiece_tokenizer(tmp_path / "vocab.txt")
    assert "vocab.txt" in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"vocab\.txt: no such vocabulary"):
        build_wordpiece_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match=r"t\.json: no such tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"t\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(InputError, match=r"tokenizer\.min_count=9"):
        build_word_tokenizer(["a dog"], 9)


@pytest.mark.skipif(not BERT.is_file(), reason="../shared/data/vocab is not here")
def test_bert_vocabulary():
    tokenizer = build_wordpiece_tokenizer(BERT)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (
        30522, 0, 100, 101, 102
    )  # fmt: skip
    assert tokenizer.allowed.sum() == 30522 - 994 - 4  # [unusedN]; PAD, UNK, CLS, MASK
    assert tokenizer.encode("A man rides a skateboard .") == [1037, 2158, 12271, 1037, 17260, 6277, 1012]
