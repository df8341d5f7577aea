"""Train and evaluate several RL methods from the same CE checkpoints with the same budget, and compare them.

python -m src.commands.comparison [--config configs/demo/comparison.yaml] [seeds=3] [key=value ...]
Each run is a process of its own. Runs and the comparison resume where they stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.commands.pipeline import Stage, check_stage, prism_flags, run_program_of, shown_system
from src.config.load import config_parser, load_config, stage_overrides
from src.config.plan import Plan, load_plan
from src.config.schema import Config
from src.data.locate import evaluated_split
from src.evaluation.comparison_report import EQUAL_UPDATES, published_figures, write_comparison
from src.evaluation.report import System
from src.evaluation.report_page import write_comparison_page
from src.evaluation.result_files import examined_by, read_evaluation, results_name, scored_as
from src.runtime.cluster import add_cluster_arguments, read_cluster
from src.runtime.environment import run_program
from src.runtime.errors import InputError
from src.runtime.files import file_digest


class ComparedRun(NamedTuple):
    """One training run of a comparison."""

    system: str
    seed: int
    stage: Stage


def main() -> None:
    """Train and evaluate what is missing, and write the report."""
    options = {"default": "configs/demo/comparison.yaml", "help": "the plan; seeds=N and the like override it"}
    parser = config_parser("Compare RL methods at an equal number of decoded captions.", **options)
    add_cluster_arguments(parser)
    arguments = parser.parse_intermixed_args()
    cluster = read_cluster(arguments)
    plan = load_plan(arguments.config, arguments.overrides)
    runs = plan_runs(plan)
    published_figures(runs[0].stage.config.data.dataset)  # a mistake in them fails now, not after the last run
    stages = distinct(runs)
    for stage in stages.values():
        check_stage(stage, cluster)
    split = evaluated_split(runs[0].stage.config, None)
    for number, (folder, stage) in enumerate(stages.items(), start=1):
        print(f"run {number} of {len(stages)}: {folder}", flush=True)
        run_program_of(stage, cluster, "train.py")
        if not is_evaluated(stage.config, split):
            flags = ["--split", split, *prism_flags(stage.config, split)]
            run_program_of(stage, cluster, "eval.py", *flags, "--checkpoint", str(stage.config.result_checkpoint))
    if cluster.node_rank > 0:
        return
    folders: dict[str, list[Path]] = {}
    systems: dict[str, System] = {}
    for run in runs:
        folders.setdefault(run.system, []).append(run.stage.config.run_folder)
        systems.setdefault(run.system, shown_system(run.stage))
    configs = {key: system.config for key, system in systems.items()}
    ce = configs["ce"]
    target = Path(ce.output_root) / f"{ce.data.dataset}-comparison"
    print(write_comparison(folders, configs, target, plan, split), f"{target}/report.md", sep="\n", flush=True)
    write_comparison_page(systems, folders, results_name(split, ce.eval), target)
    print(f"{target}/report.html")


def distinct(runs: Sequence[ComparedRun]) -> dict[Path, Stage]:
    """Return the stages by run folder. Errors: InputError if one folder would hold two different runs."""
    stages: dict[Path, Stage] = {}
    for run in runs:
        folder = run.stage.config.run_folder
        if stages.setdefault(folder, run.stage).config != run.stage.config:
            files = f"{run.stage.file} and {stages[folder].file}"
            raise InputError(f"{files} would both train in {folder}: rename a file, or remove name: from it")
    return stages


def is_evaluated(config: Config, split: str) -> bool:
    """Return whether eval.py has scored this run on a split with these settings, and no metric failed."""
    name = results_name(split, config.eval)
    if not (config.run_folder / f"eval_{name}.json").is_file():
        return False
    result = read_evaluation(config.run_folder, name)
    wanted = examined_by(config, split) if prism_flags(config, split) else None
    if result.get("left_out") or result.get("prism", {}).get("examined_by") != wanted:
        return False
    return result.get("checkpoint") == file_digest(config.result_checkpoint) and result.get("eval") == scored_as(config)


def plan_runs(plan: Plan) -> list[ComparedRun]:
    """Return all runs in an order that works: for each seed CE, then every system that starts from it.

    Two budgets that need the same number of rollouts share a run. All runs are validated equally often, so that `best`
    has as many chances in each.
    """
    runs = []
    for seed in plan.seeds:
        overrides = [*plan.overrides, f"seed={seed}", f"eval.samples={plan.samples}"]
        runs.append(ComparedRun("ce", seed, _stage(plan.ce, stage_overrides(overrides))))  # fresh=true keeps CE
        for system, file in plan.systems.items():
            config = load_config(file, overrides)
            budgets = {system: -(-plan.captions // config.captions_per_rollout)}
            if plan.updates:
                budgets[system + EQUAL_UPDATES] = -(-plan.updates // config.updates_per_rollout)
            for name, rollouts in budgets.items():
                own = [f"rl.rollouts={rollouts}", f"eval.every={max(1, round(rollouts / plan.validations))}"]
                own.append(f"name={config.name}-{rollouts}-rollouts")
                runs.append(ComparedRun(name, seed, _stage(file, [*overrides, *own])))
    return runs


def _stage(file: Path, overrides: list[str]) -> Stage:
    return Stage(file, load_config(file, overrides), overrides, None)


if __name__ == "__main__":
    run_program(main)
