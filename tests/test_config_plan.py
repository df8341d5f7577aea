"""Plans of comparisons: what they read, refuse and run."""

from pathlib import Path

import pytest

from src.comparison import plan_runs
from src.config_plan import load_plan
from src.errors import InputError
from src.evaluation.comparison import EQUAL_UPDATES

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/comparison.yaml")), ids=lambda path: path.parent.name)
def test_every_shipped_plan_gives_every_system_its_budget(path):
    plan = load_plan(path, ["seeds=2"])
    runs = plan_runs(plan)
    assert {run.seed for run in runs} == {1, 2}
    named = {run.system for run in runs}
    suffixes = ["", EQUAL_UPDATES] if plan.updates else [""]
    assert named == {"ce", *(system + suffix for system in plan.systems for suffix in suffixes)}
    for run in runs:
        config = run.stage.config
        if run.system in plan.systems:
            captions = config.grpo.rollouts * config.captions_per_rollout
            assert plan.captions <= captions < plan.captions + config.captions_per_rollout
        elif run.system != "ce":
            updates = config.grpo.rollouts * config.updates_per_rollout
            assert plan.updates <= updates < plan.updates + config.updates_per_rollout
    folders = {(run.stage.config.run_folder, run.stage.config.grpo.rollouts, run.seed) for run in runs}
    assert len(folders) == len({folder for folder, _, _ in folders})  # a folder is shared by equal runs alone


def test_scst_counts_its_greedy_captions(tmp_path):
    runs = {run.system: run.stage.config for run in plan_runs(load_plan(CONFIGS / "demo/comparison.yaml", ["seeds=1"]))}
    scst, one_out = runs["scst"], runs["scst_leave_one_out"]
    assert scst.captions_per_rollout == 2 * scst.grpo.rollout_images
    assert one_out.captions_per_rollout == 5 * one_out.grpo.rollout_images


@pytest.mark.parametrize(
    "text, words",
    [
        ("captions: many", ["captions=many", "int"]),
        ("captions: 0", ["captions=0", "at least 1"]),
        ("budget: 3", ["budget"]),
        ("- 1", ["key: value"]),
    ],
)
def test_a_bad_plan_is_named(tmp_path, text, words):
    path = tmp_path / "comparison.yaml"
    good = (CONFIGS / "demo/comparison.yaml").read_text()
    path.write_text(
        text if text == "- 1" else good.replace("captions: 19200", text.replace("budget", "captions: 1\nbudget"))
    )
    with pytest.raises(InputError) as error:
        load_plan(path, [])
    assert all(word in str(error.value) for word in [*words, str(path)])
