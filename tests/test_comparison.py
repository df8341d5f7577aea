"""What a comparison reports, by hand; and the program itself, killed and started again."""

import json
import random
import subprocess
import time

import numpy as np
import pytest
import yaml
from tiny import PYTHON, ROOT, TINY, WORLD, documented, run, tiny_data

from src.commands.comparison import is_evaluated, plan_runs
from src.config.load import load_config
from src.config.plan import load_plan
from src.evaluation import comparison_report
from src.evaluation.comparison_report import budget, over_seeds, published_figures, stability, write_comparison
from src.evaluation.plots import BINS, binned
from src.evaluation.report_tables import METRICS, series
from src.evaluation.result_files import examined_by, scored_as, write_arrays, write_json
from src.runtime.errors import InputError
from src.runtime.files import file_digest


def test_means_and_deviations_over_seeds_by_hand():
    results = [{"metrics": {"CIDEr": value}, "endings": {"truncated": 0.5}} for value in (1.0, 2.0, 6.0)]
    table = over_seeds(results)
    assert table["CIDEr"] == {"mean": 3.0, "std": pytest.approx(7**0.5), "seeds": [1.0, 2.0, 6.0]}
    assert over_seeds(results[:1])["truncated"] == {"mean": 0.5, "std": 0.0, "seeds": [0.5]}


LINES = [
    {"step": 0, "val/CIDEr": 0.5, "time/total_s": 0.0},
    {
        "step": 1,
        "train/grad_norm": 1.0,
        "rollout/advantage_std": 2.0,
        "rollout/length_mean": 9.0,
    },
    {"step": 2, "train/grad_norm": 3.0, "val/CIDEr": 0.8, "time/total_s": 1.5},
    {
        "step": 3,
        "train/grad_norm": 2.0,
        "rollout/advantage_std": 1.0,
        "rollout/length_mean": 7.0,
        "val/CIDEr": 0.55,
        "time/total_s": 2.5,
    },
    {"step": 4, "val/CIDEr": 0.75, "time/total_s": 3.25},
]


def test_budget_by_hand():
    settings = ["rl.rollouts=2", "rl.rollout_images=8", "rl.sample_images=8", "rl.update_images=4"]
    config = load_config("configs/demo/scst.yaml", settings)
    # 2 rollouts of 8 images: one sample and one greedy caption each; 8 rows of 9, then 7 tokens; 2 x 2 updates
    assert budget([LINES], config) == {"captions": 32, "token_updates": 128.0, "updates": 4, "seconds": 3.25}
    config = load_config("configs/demo/grpo.yaml", [*settings, "rl.passes=3", "rl.group_size=5"])
    assert budget([LINES, LINES], config)["captions"] == 80
    assert budget([LINES], config)["token_updates"] == 3 * 40 * 16


def test_stability_by_hand():
    values = stability([LINES, LINES])
    assert values["advantage_variance"] == 2.5  # of 4 and 1
    assert values["gradient_norm_variance"] == pytest.approx(2 / 3)  # of 1, 3, 2
    assert values["gradient_norm_relative_std"] == pytest.approx((2 / 3) ** 0.5 / 2)
    assert values["largest_fall_of_val_CIDEr"] == pytest.approx(0.25)  # from 0.8 to 0.55


def test_curves():
    steps, values = series(LINES, "val/CIDEr")
    assert steps.tolist() == [0, 2, 3, 4] and values.tolist() == [0.5, 0.8, 0.55, 0.75]
    x, y = binned(np.arange(80.0), np.arange(80.0) ** 2)
    assert len(x) == BINS and x[:2].tolist() == [0.5, 2.5] and y[:2].tolist() == [0.5, 6.5]
    assert [part.tolist() for part in binned(steps, values)] == [steps.tolist(), values.tolist()]


def test_published_figures(tmp_path, monkeypatch):
    shipped = published_figures("coco")
    assert shipped["AoANet (SCST)"] == "128.9 (beam 2; AoANet README)" and "grpo" not in shipped
    assert published_figures("demo") == {}
    entry = {"system": "grpo", "dataset": "demo", "split": "test", "decoding": "greedy", "metric": "CIDEr"}
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump({"results": [entry | {"value": 50.5, "source": "a paper"}]}))
    monkeypatch.setattr(comparison_report, "PUBLISHED", file)
    assert published_figures("demo") == {"grpo": "50.5 (greedy; a paper)"}


def write_run(folder, cider, images=4, spice=False, decoding="greedy", failed=()):
    """A run folder as training and eval.py leave it; `cider`: of every image."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    counts = np.sort(rng.integers(1, 9, (images, 10)), 1)[:, ::-1].astype(float)  # fewer matches than words
    segments = {"bleu": counts, "meteor": rng.integers(1, 5, (images, 23)).astype(float)}
    segments |= {"ROUGE_L": np.full(images, 0.25), "CIDEr": np.full(images, cider)}
    metrics = {f"Bleu_{n}": 0.5 for n in (1, 2, 3, 4)} | {"METEOR": 0.25, "ROUGE_L": 0.25, "CIDEr": cider}
    if spice:
        segments["SPICE"], metrics["SPICE"] = np.full(images, 0.125), 0.125
    for name in failed:
        del segments[name.lower()], metrics[name]
    write_arrays(folder / "segments_test.npz", segments)
    result = {"metrics": metrics, "signature": f"tok:ptb|decoding:{decoding}|images:{images}", "num_images": images}
    result |= {"left_out": dict.fromkeys(failed, "out of memory")} if failed else {}
    result |= {"diversity": {"self-CIDEr": 0.625, "vocabulary": 1345, "best-CIDEr": 1.5}}
    write_json(folder / "eval_test.json", result | {"endings": {"function_word": 0.25, "truncated": 0.0}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))


CIDER = {"ce": 0.5, "scst": 0.75, "grpo": 1.0, "scst_equal_updates": 0.625, "grpo_equal_updates": 0.875}


def compare(tmp_path, **changes):
    """report.json and report.md of two seeds of the five systems, the second 0.125 better; `changes` to first seeds."""
    folders = {system: [tmp_path / f"{system}-{seed}" for seed in (1, 2)] for system in CIDER}
    for system, (first, second) in folders.items():
        write_run(first, CIDER[system], **changes.get(system, changes.get("everywhere", {})))
        write_run(second, CIDER[system] + 0.125, **changes.get("everywhere", {}))
    configs = {system: load_config(f"configs/demo/{system.partition('_')[0]}.yaml") for system in CIDER}
    plan = load_plan(ROOT / "configs/demo/comparison.yaml", ["seeds=2", "resamples=10"])
    text = write_comparison(folders, configs, tmp_path / "report", plan, "test")
    return json.loads((tmp_path / "report/report.json").read_text()), text


def test_systems_are_compared_within_their_budget(tmp_path):
    report, text = compare(tmp_path)
    pairs = ["scst-ce", "grpo-ce", "grpo-scst"]
    pairs += ["scst_equal_updates-ce", "grpo_equal_updates-ce", "grpo_equal_updates-scst_equal_updates"]
    assert set(report["differences"]) == set(pairs)
    differences = [report["differences"][pair]["CIDEr"] for pair in pairs]
    assert [difference["mean"] for difference in differences] == pytest.approx([0.25, 0.5, 0.25, 0.125, 0.375, 0.25])
    assert all(d["seeds"] == pytest.approx([d["mean"]] * 2) for d in differences)
    assert all(d["low"] == pytest.approx(d["mean"]) == d["high"] for d in differences)  # every image has the same CIDEr
    assert report["systems"]["scst"]["CIDEr"] == {
        "mean": 0.8125,
        "std": pytest.approx(0.125 / 2**0.5),
        "seeds": [0.75, 0.875],
    }
    rows = {line.split(" | ")[0].strip("| "): line for line in reversed(text.splitlines()) if line.startswith("| ")}
    assert rows["grpo"].endswith("| 106.2 ± 8.8 |") and rows["grpo-ce"].endswith(
        "| +50.0 [+50.0, +50.0] (+50.0, +50.0) |"
    )
    assert "| ce | 0.625 | 1,345 | 150.0 | 0.25 | 0 |" in text  # diversity and endings
    assert "| grpo | 19,200 | " in text and "e+0" not in text
    assert report["left_out"] == [] and "Left out" not in text


def test_a_metric_that_one_run_lacks_is_left_out(tmp_path):
    report, text = compare(tmp_path, scst={"spice": True})
    assert "SPICE" not in report["systems"]["scst"] and "SPICE" not in report["differences"]["grpo-scst"]
    assert report["left_out"] == ["SPICE"] and "not every run has it: SPICE" in text


def test_meteor_that_failed_in_one_run_or_in_all_is_named_with_its_reason(tmp_path):
    failed = {"failed": ["METEOR"]}
    report, text = compare(tmp_path / "one", scst=failed)
    assert "METEOR is left out: out of memory (scst)." in text and "not every run has it: METEOR." in text
    assert all("METEOR" not in table for table in (*report["systems"].values(), *report["differences"].values()))
    assert "| Bleu_4 | ROUGE_L | CIDEr |" in text and report["left_out"] == ["METEOR"]
    report, text = compare(tmp_path / "all", everywhere=failed)
    assert "METEOR is left out: out of memory (ce, scst, grpo, scst_equal_updates, grpo_equal_updates)." in text
    assert "not every run" not in text and report["left_out"] == [] and "METEOR" not in report["differences"]["grpo-ce"]
    page = " ".join(report["remarks"])
    assert page.count("METEOR") == 1


@pytest.mark.parametrize("change", [{"images": 3}, {"decoding": "beam3"}])
def test_scores_that_were_made_differently_are_refused(tmp_path, change):
    with pytest.raises(InputError, match="made differently"):
        compare(tmp_path, scst=change)


def test_only_the_evaluation_of_these_weights_with_these_settings_counts(tmp_path):
    settings = [f"output_root={tmp_path}", "eval.samples=5"]
    config = load_config("configs/demo/ce.yaml", settings)
    checkpoint = config.result_checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    assert not is_evaluated(config, "test")
    result = {"checkpoint": file_digest(checkpoint), "eval": scored_as(config)}
    write_json(config.run_folder / "eval_test.json", result)
    assert is_evaluated(config, "test")
    assert not is_evaluated(load_config("configs/demo/ce.yaml", [*settings, "eval.tokens=7"]), "test")
    assert not is_evaluated(load_config("configs/demo/ce.yaml", [*settings, "eval.beams=3"]), "test")
    settings += [f"data.root={tmp_path}", "caprl.questions=questions.jsonl"]
    (tmp_path / "questions.jsonl").write_text("{}")
    examined = load_config("configs/demo/ce.yaml", settings)
    assert not is_evaluated(examined, "test")
    prism = {"examined_by": examined_by(examined, "test")}
    write_json(config.run_folder / "eval_test.json", result | {"prism": prism})
    assert is_evaluated(examined, "test")
    by_other = load_config("configs/demo/ce.yaml", [*settings, "caprl.answerer=server", "caprl.model=m"])
    assert not is_evaluated(by_other, "test")
    write_json(config.run_folder / "eval_test.json", result | {"prism": {"examined_by": examined_by(by_other, "test")}})
    assert is_evaluated(by_other, "test")
    thinking = ["caprl.answerer=server", "caprl.model=m", 'caprl.extra_body={"top_k": 1}']
    assert not is_evaluated(load_config("configs/demo/ce.yaml", [*settings, *thinking]), "test")
    write_json(config.run_folder / "eval_test.json", result | {"prism": prism})
    assert not is_evaluated(by_other, "test")
    (tmp_path / "questions.jsonl").write_text("{ }")
    assert not is_evaluated(examined, "test")
    write_json(config.run_folder / "eval_test.json", result)
    checkpoint.write_bytes(b"other weights")
    assert not is_evaluated(config, "test")


def test_fresh_restarts_the_systems_of_a_comparison():
    runs = plan_runs(load_plan(ROOT / "configs/demo/comparison.yaml", ["seeds=2", "fresh=true"]))
    assert {run.system for run in runs if not run.stage.config.fresh} == {"ce"}
    assert all(run.stage.config.fresh == (run.system != "ce") for run in runs)
    assert all(load_config(run.stage.file, run.stage.overrides) == run.stage.config for run in runs)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan of two systems with 48 captions each."""
    file = tmp_path_factory.mktemp("plan") / "comparison.yaml"
    demo = ROOT / "configs/demo"
    tree = {"ce": f"{demo}/ce.yaml", "systems": {"scst": f"{demo}/scst.yaml", "grpo": f"{demo}/grpo.yaml"}}
    budget = {"captions": 48, "updates": 0, "validations": 2, "samples": 2, "seeds": 1, "resamples": 50}
    file.write_text(yaml.safe_dump(tree | budget, sort_keys=False))
    return file


def command(plan, root, *settings):
    small = [setting for setting in TINY if not setting.startswith(("rl.rollouts", "rl.group_size", "eval.samples"))]
    return ["-m", "src.commands.comparison", "--config", str(plan), *small, f"output_root={root}",
            f"data.root={tiny_data()}", *settings]  # fmt: skip


def comparable(report):
    """A report without what no two runs share: seconds."""
    for values in report["budget"].values():
        del values["seconds"]
    return report


@pytest.fixture(scope="module")
def report(plan, tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    result = run(*command(plan, root))
    assert result.returncode == 0, result.stderr
    return root, result, json.loads((root / "demo-comparison/report.json").read_text())


def test_the_report_holds_what_the_contract_names(report):
    root, result, values = report
    assert list(values["systems"]) == ["ce", "scst", "grpo"]
    cider = values["systems"]["grpo"]["CIDEr"]
    assert set(cider) == {"mean", "std", "seeds"} and len(cider["seeds"]) == 1
    scores = {
        name: json.loads((root / f"demo-{folder}/eval_test.json").read_text())["metrics"]["CIDEr"]
        for name, folder in (("ce", "ce"), ("scst", "scst-3-rollouts"), ("grpo", "grpo-2-rollouts"))
    }
    assert list(values["differences"]) == ["scst-ce", "grpo-ce", "grpo-scst"]
    for pair, metrics in values["differences"].items():
        difference = metrics["CIDEr"]
        ours, _, other = pair.partition("-")
        assert difference["mean"] == pytest.approx(scores[ours] - scores[other])
        assert difference["low"] <= difference["mean"] <= difference["high"]
        assert difference["seeds"] == pytest.approx([difference["mean"]])
    assert values["budget"]["scst"]["captions"] == 48 and values["budget"]["grpo"]["captions"] == 80
    known = documented("report.md")
    systems = values["systems"]["grpo"].keys() - set(METRICS)
    assert systems | values["budget"]["grpo"].keys() | values["stability"]["grpo"].keys() == known - set(METRICS)
    folder = root / "demo-comparison"
    assert (folder / "report.md").read_text().strip() in result.stdout
    for name in ("learning", "curves", "quality_diversity"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert page.count('<article class="card"') == 16 and page.count("data:image/png") == 3
    assert "GRPO minus SCST" in page and page.count("<summary>2 samples: CIDEr ") == 3 * 16


@pytest.mark.slow
def test_a_killed_comparison_ends_with_the_same_report(plan, report, tmp_path):
    rng = random.Random(time.time_ns())
    kills = 0
    for _ in range(4):
        process = subprocess.Popen([PYTHON, *command(plan, tmp_path)], cwd=WORLD, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            process.wait(rng.uniform(10, 45))
        except subprocess.TimeoutExpired:
            subprocess.run(["kill", "-9", f"-{process.pid}"], check=True)
            process.wait()
            kills += 1
    assert kills
    result = run(*command(plan, tmp_path))
    assert result.returncode == 0, result.stderr
    again = json.loads((tmp_path / "demo-comparison/report.json").read_text())
    assert comparable(again) == comparable(report[2])
