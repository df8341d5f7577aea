"""Caption metrics against hand-worked numbers and against pycocoevalcap's own pipeline."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocoevalcap.eval
import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from src.data import ptb
from src.data.words import ENGLISH
from src.evaluation import caption_metrics, java_metrics
from src.evaluation.caption_metrics import compute_metrics, load_captions, load_split_captions, signature
from src.rewards.cider import corpus_cider
from src.runtime.errors import InputError
from src.runtime.java import find_java

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
    captions[95], captions[90], captions[85] = "", "A MAN IS IN ||| runs\non grass", "a woman at a caf\u00e9"
    return captions, truths


@pytest.fixture(scope="module", autouse=True)
def no_spice():
    """As on machines without SPICE's models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_metrics, "spice_has_models", lambda: False)
        yield


@pytest.fixture(scope="module")
def scores(no_spice, tmp_path_factory):
    """In a folder whose name URLs escape, where the user's Java writes 1,5 for 1.5, and the small I without a dot."""
    folder = tmp_path_factory.mktemp("x") / "My Projects#100%+[x]&\u00e9?!/a!"
    folder.mkdir(parents=True)
    jars = {java_metrics: java_metrics.METEOR_JAR, ptb: ptb._JAR}
    (folder / "data").symlink_to(java_metrics.METEOR_JAR.parent / "data")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((java_metrics, "METEOR_JAR"), (ptb, "_JAR")):
            patch.setattr(module, name, Path(shutil.copy(jars[module], folder)))
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.region=TR -Dfile.encoding=ISO-8859-9")
        patch.setenv("_JAVA_OPTIONS", "-Duser.language.format=de -Duser.country.format=DE -Xmx1900m")
        patch.setenv("LC_ALL", "C")
        patch.setattr(tempfile, "tempdir", str(folder))
        captions, truths = scenes()
        return compute_metrics(captions, ENGLISH.tokenize_images(truths))


def test_equals_pycocoevalcap_pipeline(scores, monkeypatch, tmp_path):
    (tmp_path / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR).symlink_to(ptb._JAR)
    monkeypatch.setattr(ptbtokenizer, "__file__", str(tmp_path / "ptbtokenizer.py"))  # it writes beside its module
    no_spice = SimpleNamespace(method=lambda: "SPICE", compute_score=lambda truths, results: (0.0, [0.0] * len(truths)))
    monkeypatch.setattr(pycocoevalcap.eval, "Spice", lambda: no_spice)  # it would download its models
    monkeypatch.setenv("PATH", f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}")
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
    monkeypatch.setattr(caption_metrics, "score_meteor", lambda truths, results: (0.25, None))
    truths = {1: ["a dog sits"], 2: ["the cat sleeps"]}
    first, second = 2.5 * (2 / 3 + 1 / 2), 2.5 / math.sqrt(6) * math.exp(-1 / 72)
    metrics, segments, *_ = compute_metrics({2: "A cat.", 1: "a dog runs"}, truths)
    assert metrics["Bleu_1"] == pytest.approx(3 / 5 * math.exp(-1 / 5))
    assert metrics["Bleu_2"] == pytest.approx(math.sqrt(3 / 5 * 1 / 3) * math.exp(-1 / 5))
    assert metrics["METEOR"] == 0.25
    assert metrics["ROUGE_L"] == pytest.approx((2 / 3 + 2.44 / 6 / (1 / 3 + 0.72)) / 2)
    np.testing.assert_allclose(segments["CIDEr"], [second, first])  # in the order of the captions
    assert metrics["CIDEr"] == pytest.approx((first + second) / 2)
    assert corpus_cider({2: "a cat", 1: "a dog runs"}, truths) == pytest.approx((first + second) / 2)
    assert capsys.readouterr().out == ""


def test_truths_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(caption_metrics, "score_meteor", lambda truths, results: (0.0, None))
    truths = {1: ["A dog ."], 2: ["a cat"]}
    assert compute_metrics({1: "a dog", 2: "a cat"}, truths).metrics["Bleu_1"] < 0.9
    truths = ENGLISH.tokenize_images(truths)
    assert compute_metrics({1: "a dog", 2: "a cat"}, truths).metrics["Bleu_1"] == pytest.approx(1)


def fail(*_):
    raise ZeroDivisionError("by\nzero")


def test_a_metric_that_fails_is_named_and_the_others_are_kept(monkeypatch, capsys):
    monkeypatch.setattr(caption_metrics, "score_meteor", fail)
    scores = compute_metrics({1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["a cat"]})
    assert list(scores.metrics) == [key for key in KEYS if key != "METEOR"] and "meteor" not in scores.segments
    assert scores.left_out == {"METEOR": "ZeroDivisionError: by zero"} and scores.notes == []
    said = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("SPICE is left out: its models")
    ]
    assert said == ["METEOR is left out: ZeroDivisionError: by zero"]
    for name in ("_bleu", "_rouge", "_cider"):
        monkeypatch.setattr(caption_metrics, name, fail)
    with pytest.raises(
        InputError, match="no metric could be computed; the first failed with ZeroDivisionError: by zero"
    ):
        compute_metrics({1: "a"}, {1: ["a"]})


def test_one_image_has_no_cider_and_says_why(monkeypatch, capsys):
    monkeypatch.setattr(caption_metrics, "score_meteor", lambda truths, results: (0.5, None))
    scores = compute_metrics({1: "a dog runs fast"}, {1: ["a dog runs fast"]})
    assert scores.metrics["CIDEr"] == 0 and scores.metrics["Bleu_4"] == pytest.approx(1)
    (note,) = scores.notes
    assert "log 1 = 0" in note and capsys.readouterr().err.endswith(f"{note}\n")


def test_a_subset_is_scored_as_in_the_whole_split(scores):
    """CIDEr of an image does not depend on which others are scored; its document frequencies are the split's."""
    captions, truths = scenes()
    kept = dict(reversed(list(captions.items())[4:9]))
    subset = compute_metrics(kept, ENGLISH.tokenize_images(truths))
    for name, values in subset.segments.items():
        np.testing.assert_allclose(values, scores.segments[name][4:9][::-1], atol=1e-12, err_msg=name)
    assert subset.metrics["CIDEr"] == pytest.approx(scores.segments["CIDEr"][4:9].mean())
    assert list(subset.metrics) == KEYS


def test_a_results_file_of_some_images_of_a_split(tmp_path, capsys):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"image_id": "7", "caption": "a"}, {"image_id": 8, "caption": "b"}]))
    assert load_split_captions(path, {8: [], 7: [], 9: []}.keys(), "test") == {7: "a", 8: "b"}
    line = "has captions of 2 of 3 images of the test split: only these are scored, with CIDEr's document frequencies"
    assert f"{path} {line} of the whole split\n" == capsys.readouterr().err
    assert load_split_captions(path, ["7", "8"], "val") == {"7": "a", "8": "b"}
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"captions.json: 1 of 2 .* not in the val split .*8"):
        load_split_captions(path, [7], "val")
    path.write_text(json.dumps([{"image_id": "7", "caption": "a"}, {"image_id": 7, "caption": "b"}]))
    with pytest.raises(InputError, match=r"captions.json: image_id 7 appears as a number and as a text"):
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
    line = signature(tokens="ptb", document_frequencies="test", decoding="greedy", num_images=500)
    assert line == "tok:ptb|df:test|eos:no|decoding:greedy|images:500|pycocoevalcap:1.2"
    assert signature(tokens="ptb", document_frequencies="test", decoding="greedy", num_images=500, of=500) == line
    subset = signature(tokens="ptb", document_frequencies="test", decoding="file", num_images=240, of=500)
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
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}', 'line 2 column 1 .*; expected a list of {"image_id": int or str'),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
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
