"""What a comparison reports, by hand; and the program itself, killed and started again."""

import json
import random
import subprocess
import sys
import time

import pytest
import yaml
from tiny import ROOT, TINY, run, tiny_data

from src.config_load import load_config
from src.evaluation import comparison
from src.evaluation.comparison import budget, over_seeds, published_figures, stability
from src.evaluation.plots import series


def test_means_and_deviations_over_seeds_by_hand():
    results = [{"metrics": {"CIDEr": value}, "endings": {"truncated": 0.5}} for value in (1.0, 2.0, 6.0)]
    table = over_seeds(results)
    assert table["CIDEr"] == {"mean": 3.0, "std": pytest.approx(7**0.5), "seeds": [1.0, 2.0, 6.0]}
    assert over_seeds(results[:1])["truncated"] == {"mean": 0.5, "std": 0.0, "seeds": [0.5]}


LINES = [
    {"step": 0, "val/CIDEr": 0.5},
    {
        "step": 1,
        "train/grad_norm": 1.0,
        "rollout/advantage_std": 2.0,
        "rollout/length_mean": 9.0,
    },
    {"step": 2, "train/grad_norm": 3.0, "val/CIDEr": 0.8},
    {"step": 3, "train/grad_norm": 2.0, "rollout/advantage_std": 1.0, "rollout/length_mean": 7.0, "val/CIDEr": 0.55},
    {"step": 4, "val/CIDEr": 0.75, "time/total_s": 3.25},
]


def test_budget_by_hand():
    settings = ["grpo.rollouts=2", "grpo.rollout_images=8", "grpo.sample_images=8", "grpo.update_images=4"]
    config = load_config("configs/demo/scst.yaml", settings)
    # 2 rollouts of 8 images: one sample and one greedy caption each; 8 rows of 9, then 7 tokens; 2 x 2 updates
    assert budget([LINES], config) == {"captions": 32, "token_updates": 128.0, "updates": 4, "seconds": 3.25}
    config = load_config("configs/demo/grpo.yaml", [*settings, "grpo.passes=3", "grpo.group_size=5"])
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


def test_published_figures(tmp_path, monkeypatch):
    shipped = published_figures("coco")
    assert shipped["AoANet (SCST)"] == "128.9 (beam 2; AoANet README)" and "grpo" not in shipped
    assert published_figures("demo") == {}
    entry = {"system": "grpo", "dataset": "demo", "split": "test", "decoding": "greedy", "metric": "CIDEr"}
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump({"results": [entry | {"value": 50.5, "source": "a paper"}]}))
    monkeypatch.setattr(comparison, "PUBLISHED", file)
    assert published_figures("demo") == {"grpo": "50.5 (greedy; a paper)"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan of two systems with 48 captions each."""
    file = tmp_path_factory.mktemp("plan") / "comparison.yaml"
    demo = ROOT / "configs/demo"
    tree = {"ce": f"{demo}/ce.yaml", "systems": {"scst": f"{demo}/scst.yaml", "grpo": f"{demo}/grpo.yaml"}}
    budget = {"captions": 48, "updates": 0, "samples": 2, "seeds": 1, "resamples": 50}
    file.write_text(yaml.safe_dump(tree | budget, sort_keys=False))
    return file


def command(plan, root, *settings):
    small = [setting for setting in TINY if not setting.startswith(("grpo.rollouts", "grpo.group_size"))]
    return ["-m", "src.comparison", "--config", str(plan), *small, f"output_root={root}",
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
    assert list(values["differences"]) == ["grpo-ce", "grpo-scst"]
    for pair, metrics in values["differences"].items():
        difference = metrics["CIDEr"]
        assert difference["mean"] == pytest.approx(scores["grpo"] - scores[pair.removeprefix("grpo-")])
        assert difference["low"] <= difference["mean"] <= difference["high"]
        assert difference["seeds"] == pytest.approx([difference["mean"]])
    assert values["budget"]["scst"]["captions"] == 48 and values["budget"]["grpo"]["captions"] == 80
    folder = root / "demo-comparison"
    assert (folder / "report.md").read_text().strip() in result.stdout
    for name in ("learning", "curves", "quality_diversity"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_comparison_ends_with_the_same_report(plan, report, tmp_path):
    rng = random.Random(time.time_ns())
    kills = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, *command(plan, tmp_path)], cwd=ROOT, start_new_session=True,
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
