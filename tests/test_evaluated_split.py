"""Which split the programs evaluate, on data as COCO 2017 is downloaded: captions of train and val alone."""

import json
import shutil

import numpy as np
import pytest
from test_records import COCO, write_coco

import eval as eval_program
import src.commands.comparison
import src.commands.pipeline
from src.evaluation import evaluate
from src.evaluation.caption_metrics import CaptionScores
from src.runtime.errors import InputError


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Keys of a data set without a test split."""
    monkeypatch.setenv("CAPTIONER_SAID", str(tmp_path / "said"))  # as programs do for a command
    write_coco(tmp_path)
    (tmp_path / "annotations/captions_test.json").unlink()
    data = [f"data.{key}={value}" for key, value in COCO.items() if value]
    return [*data, f"data.root={tmp_path}", "data.dataset=x", f"output_root={tmp_path}/out"]


def run(program, monkeypatch, *words: str) -> list[list[str]]:
    """The commands that a program starts: what stands behind the configuration's file."""
    started: list[list[str]] = []
    monkeypatch.setattr("sys.argv", ["program", *words])
    module = src.commands.comparison if program is src.commands.comparison.main else src.commands.pipeline
    monkeypatch.setattr(module, "run_program_of", lambda stage, cluster, *rest: started.append(list(rest)))
    program()
    return started


def test_stages_are_evaluated_on_val_and_the_report_keeps_its_name(settings, tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(
        src.commands.pipeline, "write_report", lambda folders, path, name: written.append((path.name, name))
    )
    monkeypatch.setattr("src.evaluation.report_page.write_stages_page", lambda *page: None)
    started = run(src.commands.pipeline.main, monkeypatch, "grpo", *settings)
    assert [words[:3] for words in started] == [["train.py"]] * 2 + [["eval.py", "--split", "val"]] * 2
    assert written == [("report.md", "val")]
    assert capsys.readouterr().err.count("has no test split with captions: evaluating on val") == 1
    run(src.commands.pipeline.main, monkeypatch, "ce", "--split", "val", *settings)
    assert written[1:] == [("report_val.md", "val")]
    with pytest.raises(InputError, match=r"--split test: .* has no test split with captions; pass --split val"):
        run(src.commands.pipeline.main, monkeypatch, "ce", "--split", "test", *settings)


def test_a_comparison_is_on_val_beside_no_published_figure_of_a_test(settings, monkeypatch):
    written = []
    monkeypatch.setattr(src.commands.comparison, "write_comparison", lambda *report: written.append(report[-1]) or "")
    monkeypatch.setattr(src.commands.comparison, "write_comparison_page", lambda *page: written.append(page[2]))
    started = run(src.commands.comparison.main, monkeypatch, *settings, "captions=2000", "seeds=1")
    evaluations = [words for words in started if words[0] == "eval.py"]
    assert evaluations and all(words[1:3] == ["--split", "val"] for words in evaluations)
    assert written == ["val", "val"]
    assert src.commands.comparison.published_figures("coco") and not src.commands.comparison.published_figures(
        "coco", "val"
    )


def test_a_file_of_captions_needs_the_annotations_of_its_split_alone(settings, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "annotations/captions_train.json").unlink()
    file = tmp_path / "some.json"
    file.write_text(json.dumps([{"image_id": 101, "caption": "a dog"}, {"image_id": "103", "caption": "a cat"}]))
    scored = []

    def compute(captions, truths, words):
        scored.append((captions, list(truths)))
        return CaptionScores({"CIDEr": 0.5}, {"CIDEr": np.zeros(2)}, {}, [])

    monkeypatch.setattr(evaluate, "compute_metrics", compute)
    words = ["--config", "configs/demo/grpo.yaml", "--captions", str(file), *settings]
    monkeypatch.setattr("sys.argv", ["eval.py", *words])
    eval_program.main()
    assert scored == [({101: "a dog", 103: "a cat"}, [100, 101, 102, 103])]
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["num_images"] == 2 and "|df:val|" in result["signature"] and "|images:2/4|" in result["signature"]
    assert "some.json has captions of 2 of 4 images of the val split" in err
    monkeypatch.setattr("sys.argv", ["eval.py", *words, "--split", "train"])
    with pytest.raises(InputError, match=r"captions_train\.json: no such file"):
        eval_program.main()
