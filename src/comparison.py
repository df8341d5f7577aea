"""Train and evaluate several RL methods from the same CE checkpoints with the same budget, and compare them.

python -m src.comparison [--config configs/demo/comparison.yaml] [seeds=3] [key=value ...]
Each run is a process of its own that goes on where it stopped; so does the comparison.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from src.config import Config
from src.config_load import load_config
from src.config_plan import Plan, load_plan
from src.environment import run_program
from src.evaluation.comparison import EQUAL_UPDATES, write_comparison
from src.evaluation.files import read_evaluation
from src.pipeline import Stage, run_program_of


class ComparedRun(NamedTuple):
    """One training run of a comparison: which system and seed, and the stage that makes it."""

    system: str
    seed: int
    stage: Stage


def main() -> None:
    """Run what is not complete, evaluate what is not evaluated, and write the report."""
    parser = argparse.ArgumentParser(description="Compare RL methods at an equal number of sampled captions.")
    parser.add_argument("--config", type=Path, default=Path("configs/demo/comparison.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="seeds=N, or settings of every stage")
    arguments = parser.parse_intermixed_args()
    plan = load_plan(arguments.config, arguments.overrides)
    runs = plan_runs(plan)
    for run in runs:
        run_program_of(run.stage, "train.py")
        checkpoint = run.stage.config.result_checkpoint
        if not is_evaluated(run.stage.config.run_folder, checkpoint, plan.samples):
            run_program_of(run.stage, "eval.py", "--checkpoint", str(checkpoint), f"eval.samples={plan.samples}")
    folders: dict[str, list[Path]] = {}
    configs: dict[str, Config] = {}
    for run in runs:
        folders.setdefault(run.system, []).append(run.stage.config.run_folder)
        configs[run.system] = run.stage.config
    ce = runs[0].stage.config
    print(write_comparison(folders, configs, Path(ce.output_root) / f"{ce.data.dataset}-comparison", plan))


def is_evaluated(folder: Path, checkpoint: Path, samples: int) -> bool:
    """Whether eval.py has scored this checkpoint on the test split, with as many samples per image."""
    if not (folder / "eval_test.json").is_file():
        return False
    newer = (folder / "eval_test.json").stat().st_mtime >= checkpoint.stat().st_mtime
    return newer and read_evaluation(folder, "test").get("samples") == samples


def plan_runs(plan: Plan) -> list[ComparedRun]:
    """All runs in the order in which they can be made: for each seed CE, then every system that starts from it.

    Where both budgets come to the same number of rollouts, they share a run.
    """
    runs = []
    for seed in plan.seeds:
        overrides = [*plan.overrides, f"seed={seed}"]
        runs.append(ComparedRun("ce", seed, _stage(plan.ce, overrides)))
        for system, file in plan.systems.items():
            config = load_config(file, overrides)
            budgets = {system: -(-plan.captions // config.captions_per_rollout)}
            if plan.updates:
                budgets[system + EQUAL_UPDATES] = -(-plan.updates // config.updates_per_rollout)
            for name, rollouts in budgets.items():
                named = [*overrides, f"grpo.rollouts={rollouts}", f"name={config.name}-{rollouts}-rollouts"]
                runs.append(ComparedRun(name, seed, _stage(file, named)))
    return runs


def _stage(file: Path, overrides: list[str]) -> Stage:
    return Stage(file, load_config(file, overrides), overrides, None)


if __name__ == "__main__":
    run_program(main)
