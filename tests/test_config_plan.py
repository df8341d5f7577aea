"""Plans of comparisons: what they read, refuse and run."""

from pathlib import Path

import pytest
import yaml

from src.commands.comparison import distinct, plan_runs
from src.config.plan import load_plan
from src.evaluation.comparison_report import EQUAL_UPDATES
from src.runtime.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/comparison*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_plan_gives_every_system_its_budget(path):
    plan = load_plan(path, ["seeds=2"])
    runs = plan_runs(plan)
    assert {run.seed for run in runs} == {1, 2}
    named = {run.system for run in runs}
    suffixes = ["", EQUAL_UPDATES] if plan.updates else [""]
    assert named == {"ce", *(system + suffix for system in plan.systems for suffix in suffixes)}
    for run in runs:
        config = run.stage.config
        validations = config.rl.rollouts / config.eval.every
        assert run.system == "ce" or 0.85 * plan.validations < validations < 1.15 * plan.validations
        if run.system in plan.systems:
            captions = config.rl.rollouts * config.captions_per_rollout
            assert plan.captions <= captions < plan.captions + config.captions_per_rollout
        elif run.system != "ce":
            updates = config.rl.rollouts * config.updates_per_rollout
            assert plan.updates <= updates < plan.updates + config.updates_per_rollout
    assert distinct(runs).keys() == {run.stage.config.run_folder for run in runs}


@pytest.mark.parametrize("folder, text", [("mine", "kl:\n  coef: 0.0\n"), ("", "name: mine\n")], ids=["stem", "name"])
def test_a_folder_cannot_hold_two_runs(tmp_path, folder, text):
    """Two files of one name in two folders; a file that names its run, for two seeds."""
    for name in ("ce", "grpo"):
        (tmp_path / f"{name}.yaml").write_text(f"base: {CONFIGS}/demo/{name}.yaml\n")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "grpo.yaml").write_text(
        f"base: {CONFIGS}/demo/grpo.yaml\ninit_config: {tmp_path}/ce.yaml\n{text}"
    )
    tree = yaml.safe_load((CONFIGS / "demo/comparison.yaml").read_text())
    tree["systems"] = {"grpo": "grpo.yaml", "other": f"{tmp_path / folder / 'grpo.yaml'}"}
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(tree))
    runs = plan_runs(load_plan(tmp_path / "comparison.yaml", ["seeds=2"]))
    with pytest.raises(InputError, match=r"grpo\.yaml would both train in outputs/"):
        distinct(runs)


def test_scst_counts_its_greedy_captions():
    runs = {run.system: run.stage.config for run in plan_runs(load_plan(CONFIGS / "demo/comparison.yaml", ["seeds=1"]))}
    scst, one_out = runs["scst"], runs["scst_leave_one_out"]
    assert scst.captions_per_rollout == 2 * scst.rl.rollout_images
    assert one_out.captions_per_rollout == 5 * one_out.rl.rollout_images


@pytest.mark.parametrize(
    "change, words",
    [
        ({"captions": "many"}, ["captions=many", "whole number"]),
        ({"captions": 0}, ["captions=0", "at least 1"]),
        ({"sample": 3}, ["'sample'", "did you mean 'samples'"]),
        ({"budget": 3}, ["'budget'", "captions"]),
        ({"systems": {}}, ["systems={}", "grpo.yaml"]),
        ({"systems": {"grpo": 3}}, ["systems=", "grpo.yaml"]),
        ({"systems": {"grpo-2": f"{CONFIGS}/demo/grpo.yaml"}}, ["systems.grpo-2", "letters, digits and _"]),
        ({"systems": {"ce": "grpo.yaml"}}, ["systems=", "but ce"]),
        ({"systems": {"grpo": f"{CONFIGS}/demo/ce.yaml"}}, ["systems.grpo", "cross-entropy"]),
        ({"ce": f"{CONFIGS}/flickr8k/ce.yaml"}, ["demo/ce.yaml", "flickr8k/ce.yaml", "init_config"]),
        ({"ce": None}, ["ce=None"]),
        ([1], ["key: value"]),
    ],
)
def test_a_bad_plan_is_named(tmp_path, change, words):
    path = tmp_path / "comparison.yaml"
    tree = yaml.safe_load((CONFIGS / "demo/comparison.yaml").read_text())
    tree["ce"] = f"{CONFIGS}/demo/ce.yaml"
    tree["systems"] = {name: f"{CONFIGS}/demo/{file}" for name, file in tree["systems"].items()}
    path.write_text(yaml.safe_dump(tree | change if isinstance(change, dict) else change))
    with pytest.raises(InputError) as error:
        load_plan(path, [])
    assert all(word in str(error.value) for word in [*words, str(path)]), error.value


@pytest.mark.parametrize("override", ["name=mine", "rl.rollouts=7", "eval.samples=4", "init_checkpoint=best"])
def test_what_a_comparison_sets_itself_is_refused(override):
    with pytest.raises(InputError, match=override):
        load_plan(CONFIGS / "demo/comparison.yaml", [override])


def test_numbers_of_a_plan_are_replaced():
    plan = load_plan(CONFIGS / "demo/comparison.yaml", ["samples=10", "resamples=20", "seeds=1", "seed=5", "updates=0"])
    assert (plan.samples, plan.resamples, plan.seeds, plan.updates) == (10, 20, (5,), 0)
    assert plan.overrides == ("seed=5",)
    with pytest.raises(InputError, match="seeds=-1"):
        load_plan(CONFIGS / "demo/comparison.yaml", ["seeds=-1"])
