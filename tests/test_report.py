import json

import pytest

from src.config.load import load_config
from src.evaluation.report import metrics_table, owning_folder, write_report
from src.runtime.errors import InputError


def result(cider, signature="tok:ptb"):
    return {"metrics": {"Bleu_4": 0.1234, "CIDEr": cider}, "signature": signature, "num_images": 3}


def test_the_table_is_on_the_scale_of_papers():
    lines = metrics_table({"CE": result(0.376), "GRPO": result(1.0)}).splitlines()
    assert lines[0] == "|  | Bleu_4 | CIDEr |"
    assert lines[2:] == ["| CE | 12.3 | 37.6 |", "| GRPO | 12.3 | 100.0 |"]


def test_runs_side_by_side_with_one_signature(tmp_path):
    for name, score in (("a", 0.5), ("b", 0.75)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval_test.json").write_text(json.dumps(result(score)))
    report = write_report({"CE": tmp_path / "a", "GRPO": tmp_path / "b"}, tmp_path / "b/report.md", "test")
    assert report == (tmp_path / "b/report.md").read_text()
    assert "| CE | 12.3 | 50.0 |" in report and "| GRPO | 12.3 | 75.0 |" in report and "`tok:ptb`" in report
    (tmp_path / "a/eval_test.json").write_text(json.dumps(result(0.5, "tok:other")))
    with pytest.raises(InputError, match="differently"):
        write_report({"CE": tmp_path / "a", "GRPO": tmp_path / "b"}, tmp_path / "b/report.md", "test")
    for name, examiner in (("a", "exact reading on 01"), ("b", "exact reading on 23")):
        (tmp_path / name / "eval_test.json").write_text(json.dumps(result(0.5) | {"prism": {"examined_by": examiner}}))
    with pytest.raises(InputError, match=r"differently: exact reading on 01 and exact reading on 23"):
        write_report({"CE": tmp_path / "a", "GRPO": tmp_path / "b"}, tmp_path / "b/report.md", "test")
    with pytest.raises(InputError, match=r"eval_val\.json"):
        write_report({"CE": tmp_path / "a"}, tmp_path / "a/report.md", "val")


def test_what_failed_and_what_to_know_stand_below_the_table(tmp_path):
    ce = result(0.5) | {"left_out": {"METEOR": "no memory"}, "notes": ["CIDEr is 0.0"]}
    grpo = result(0.5) | {"notes": ["CIDEr is 0.0"]}
    grpo["metrics"] = grpo["metrics"] | {"METEOR": 0.25}
    for name, row in (("a", ce), ("b", grpo)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval_test.json").write_text(json.dumps(row))
    report = write_report({"CE": tmp_path / "a", "GRPO": tmp_path / "b"}, tmp_path / "report.md", "test")
    below = report.partition("| GRPO | 12.3 | 50.0 |\n")[2].partition("\nSignature")[0]
    assert [line for line in below.splitlines() if line] == [
        "CIDEr is 0.0.",
        "METEOR is left out: no memory (CE).",
        "Left out, since not every run has it: METEOR.",
    ]


def test_results_go_into_the_run_that_owns_the_checkpoint(tmp_path):
    config = load_config("configs/demo/ce.yaml", ["output_root=elsewhere"])
    assert owning_folder(config, tmp_path / "run/checkpoints/best") == tmp_path / "run"
    assert str(owning_folder(config, tmp_path / "copied")) == "elsewhere/copied"
    assert str(owning_folder(config, tmp_path / "served/model.safetensors")) == "elsewhere/served"
