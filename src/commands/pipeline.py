"""Run the stages of one configuration in order, each as a process of its own; the scripts start this.

python -m src.commands.pipeline ce|grpo|scst|eval [--config FILE] [key=value ...]
ce: train and evaluate. grpo, scst: train CE unless it is complete, then RL; evaluate both and print the table. eval:
evaluate these results again, or one checkpoint, or with --images caption photographs with several.
This process also writes report.html, for which it runs the models on a few images (src/evaluation/gallery.py).
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from src.captioning.arguments import add_image_arguments, read_image_arguments
from src.commands.demo_data import make_demo_data
from src.config.load import load_config, stage_overrides
from src.config.rules import check_workers
from src.config.schema import Config
from src.data.locate import evaluated_split
from src.data.questions import questions_file
from src.data.record import SPLITS
from src.evaluation.report import System, owning_folder, write_report
from src.evaluation.result_files import results_name
from src.models.folder import init_file
from src.runtime.cluster import Cluster, add_cluster_arguments, read_cluster
from src.runtime.environment import run_program
from src.runtime.errors import InputError
from src.runtime.files import ROOT, given_file
from src.runtime.launch import launch
from src.training.answerer import read_questions


def main() -> None:
    """Run the stages; a stage that fails ends the program with its exit status."""
    parser = argparse.ArgumentParser("scripts/run_GOAL.sh", description="Train and evaluate a configuration's stages.")
    parser.add_argument("goal", choices=("ce", "grpo", "scst", "eval"), help=argparse.SUPPRESS)  # set by the scripts
    parser.add_argument("--config", type=given_file, help="default: configs/demo/<goal>.yaml, grpo.yaml for eval")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all stages")
    parser.add_argument("--checkpoint", nargs="+", metavar="[NAME=]PATH", help="for eval; default: the run's result")
    parser.add_argument("--split", choices=SPLITS, help="default: test, or val if there is no test split")
    add_image_arguments(parser)
    add_cluster_arguments(parser)
    arguments = parser.parse_intermixed_args()
    goal = "grpo" if arguments.goal == "eval" else arguments.goal
    checkpoints = read_image_arguments(arguments, given_file(f"configs/demo/{goal}.yaml"))
    if arguments.goal != "eval" and (checkpoints or arguments.images):
        raise InputError("--checkpoint and --images are for scripts/run_eval.sh; RL starts from init_checkpoint=PATH")
    cluster = read_cluster(arguments)
    file = arguments.config
    config = load_config(file, arguments.overrides)
    stages = [Stage(file, config, arguments.overrides, next(iter(checkpoints.values()), None))]
    if arguments.goal == "eval" and not checkpoints and not config.result_checkpoint.is_file():
        raise InputError(f"{config.run_folder} holds no result: train it first, or pass --checkpoint")
    if arguments.goal == "eval" and arguments.images:
        words = ["--checkpoint", *(arguments.checkpoint or [str(config.result_checkpoint)])]
        words += ["--images", *arguments.images]
        words += [] if arguments.output is None else ["--output", str(arguments.output)]
        run_program_of(stages[0], cluster, "eval.py", *words)
        return
    split = evaluated_split(config, arguments.split)
    if config.stage != "ce" and config.init_config is not None and not checkpoints:
        overrides = stage_overrides(arguments.overrides)
        ce_file = file.parent / config.init_config
        ce = Stage(ce_file, load_config(ce_file, overrides), overrides, init_file(config))
        if arguments.goal != "eval" or shown_system(ce).checkpoint.is_file():
            stages.insert(0, ce)

    for stage in stages:  # before the first is trained
        check_stage(stage, cluster, training=arguments.goal != "eval" and stage.checkpoint is None)
    for stage in stages:
        if arguments.goal != "eval" and stage.checkpoint is None:
            run_program_of(stage, cluster, "train.py")
    for stage in stages:
        flags = ["--split", split, *prism_flags(stage.config, split)]
        run_program_of(stage, cluster, "eval.py", *flags, "--checkpoint", str(shown_system(stage).checkpoint))
    if cluster.node_rank > 0:
        return
    systems: dict[str, System] = {stage.config.stage: shown_system(stage) for stage in stages}
    name = results_name(split, config.eval)
    stem = "report" if arguments.split in (None, "test") else f"report_{split}"
    path = systems[stages[-1].config.stage].folder / f"{stem}.md"
    print(write_report({key.upper(): system.folder for key, system in systems.items()}, path, name), flush=True)
    from src.evaluation.report_page import write_stages_page  # imports matplotlib

    write_stages_page(systems, name, path.with_suffix(".html"))
    print(path.with_suffix(".html"))


class Stage(NamedTuple):
    """One stage: its file, configuration and overrides, and a checkpoint that replaces its training."""

    file: Path
    config: Config
    overrides: list[str]
    checkpoint: Path | None


def check_stage(stage: Stage, cluster: Cluster, *, training: bool = True) -> None:
    """Find early what would stop a stage. Errors: InputError."""
    check_workers(stage.config, cluster.size)
    if training and stage.config.stage != "ce" and stage.config.rewards.caprl:
        make_demo_data(stage.config)
        read_questions(stage.config, "train")


def shown_system(stage: Stage) -> System:
    """Return the checkpoint of a stage to evaluate, and the folder of its results."""
    if stage.checkpoint is None:
        return System(stage.config, stage.config.run_folder, stage.config.result_checkpoint)
    return System(stage.config, owning_folder(stage.config, stage.checkpoint), stage.checkpoint)


def prism_flags(config: Config, split: str) -> list[str]:
    """Return the flag for evaluation by questions, if this split has questions and eval.samples is set."""
    has_questions = config.caprl.questions is not None and questions_file(config, split).is_file()
    return ["--prism"] if has_questions and config.eval.samples else []


def run_program_of(stage: Stage, cluster: Cluster, program: str, *arguments: str) -> None:
    """Run train.py or eval.py on the devices of a cluster, in the foreground; if it fails, end with its status."""
    check_workers(stage.config, cluster.size)
    command = [str(ROOT / program), "--config", str(stage.file), *arguments, *stage.overrides]
    launch(command, cluster, stage.config.run_folder / "logs" / program.removesuffix(".py"))


if __name__ == "__main__":
    run_program(main)
