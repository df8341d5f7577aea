"""Hostile text in captions, names of systems and files, remarks and settings stays text on every page."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hostile import TEXT

from src.captioning.captions import DecodedCaption
from src.captioning.page import PARTS, Shown, attention_strip
from src.config.load import load_config
from src.evaluation import report_page
from src.evaluation.gallery import Gallery, Picture, ScoredCaption
from src.evaluation.report import System
from src.runtime import device


class Elements(HTMLParser):
    """The tags of a page with the names of their attributes, and all text and values of attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(name for name, _ in attributes)))
        self.texts += [value or "" for _, value in attributes]

    def handle_endtag(self, tag):
        self.tags.append(tag)

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.texts.append(data)


def assert_inert(render):
    """render(text) has the same elements whatever the text is, and prints it wherever it prints a harmless one."""
    hostile, harmless = Elements(render(TEXT)), Elements(render("harmless"))
    assert hostile.tags == harmless.tags
    printed = sum(text.count("harmless") for text in harmless.texts)
    assert printed > 0
    for part in ("<img src=x onerror=alert(1)>", "{{ 7*7 }}", "&lt;b&gt; & &amp;", "\x01\x08\x1b[31m\x7f\x9f"):
        in_json = json.dumps(part)[1:-1].replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        counts = [sum(text.count(form) for text in hostile.texts) for form in dict.fromkeys((part, in_json))]
        assert sum(counts) == printed, part


def gallery(text):
    """What `build_gallery` returns: one image, two systems, greedy captions and a sample."""
    row = ScoredCaption(text, 0.5, [text], np.full((1, 4), 0.25))
    picture = Picture(text, "data:,", (text, text), "even", {"ce": [row, row], text: [row, row]})
    return Gallery([picture], 7)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function: the system of a configuration with hostile settings. The pages are laid out without models."""
    monkeypatch.setattr(report_page, "prepare_environment", lambda **_: None)
    monkeypatch.setattr(device, "setup_device", lambda config: None)
    config = load_config("configs/demo/ce.yaml", [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "ce", "train/loss": 2.0}\n')

    def system(text):
        monkeypatch.setattr(report_page, "build_gallery", lambda *_: gallery(text))
        return System(replace(config, data=replace(config.data, dataset=text)), tmp_path, tmp_path / "best")

    return system


def test_the_page_of_a_comparison(settings, tmp_path):
    for name in ("learning", "curves", "quality_diversity"):
        (tmp_path / f"{name}.png").write_bytes(b"PNG")

    def render(text):
        score = {"CIDEr": {"mean": 0.5, "std": 0.1, "seeds": [0.5]}, text: {"mean": 0.5, "std": 0.1, "seeds": [0.5]}}
        report = {
            "systems": {"ce": score, text: score},
            "differences": {f"{text}-ce": {"CIDEr": {"mean": 0.1, "low": 0.05, "high": 0.2, "seeds": [0.0]}}},
            "budget": {text: {text: 1.0}},
            "stability": {text: {text: 1.0}},
            "remarks": [text],
            "signatures": {"score": text},
        }
        (tmp_path / "report.json").write_text(json.dumps(report))
        systems = {"ce": settings(text), text: settings(text)}
        report_page.write_comparison_page(systems, {"ce": [tmp_path], text: [tmp_path]}, f"{text}_beam3", tmp_path)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    assert_inert(render)


def test_the_page_of_stages(settings, tmp_path):
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "seeds": [0.0]}
    np.savez(tmp_path / "segments_test.npz", CIDEr=np.array([0.5, 0.5]))

    def render(text):
        prism = {"mean": interval, "best": interval, "types": {text: interval}, "captions_per_image": 5, "questions": 9}
        result = {"metrics": {"CIDEr": 0.5}, "signature": text, "notes": [text], "left_out": {text: text}}
        (tmp_path / "eval_test.json").write_text(json.dumps(result | {"prism": prism, "endings": {text: 0.5}}))
        report_page.write_stages_page({"ce": settings(text)}, "test", tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    assert_inert(render)


def captions(text):
    return {name: [DecodedCaption(text, text, -1.0)] for name in ("CE", text)}


def strip(text):
    looks = {name: [([text, text], np.full((2, 4), 0.25, np.float32))] for name in ("CE", text)}
    return attention_strip(Shown(np.zeros((8, 8, 3), np.uint8), captions(text), looks), 1)


@pytest.mark.parametrize(
    "render",
    [
        lambda text: PARTS.heading(["CE", text], text, text),
        lambda text: PARTS.failure(text),
        lambda text: PARTS.photograph(text),
        lambda text: PARTS.captions_table(captions(text)),
        strip,
        lambda text: PARTS.attention_strip([(text, text, text)]),
    ],
    ids=["heading", "failure", "photograph", "captions", "attention", "attention of any text"],
)
def test_the_parts_of_the_captioning_page(render):
    assert_inert(render)
