"""Train one stage: python train.py --config FILE [key=value ...]"""

import argparse
from pathlib import Path

from src.commands.demo_data import make_demo_data
from src.config.load import load_config
from src.config.rules import check_workers
from src.runtime.environment import prepare_environment, run_program
from src.runtime.files import given_file


def main() -> None:
    """Parse the configuration, build the parts, call one loop. Imports come late: bad input is told in a second."""
    parser = argparse.ArgumentParser(description="Train one stage (ce, grpo or scst) of a captioner.")
    parser.add_argument("--config", type=given_file, required=True, help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    prepare_environment(convolutions=config.convolves)

    from src.runtime.workers import join_workers

    workers = join_workers(config)
    check_workers(config, workers.size)

    from src.runtime.device import setup_device
    from src.training.ce import CrossEntropy
    from src.training.loop import GroupObjective, train
    from src.training.run import describe, start_run
    from src.training.run_folder import claim_run_folder, init_checkpoint, is_complete

    init = init_checkpoint(config, Path(arguments.config), arguments.overrides)
    if workers.is_first:
        make_demo_data(config)
        claim_run_folder(config, init)
    workers.wait()
    folder = config.run_folder
    if is_complete(folder) and not config.fresh:
        print(f"{folder} is complete; to train it again, delete it")
        return
    target = setup_device(config)
    run = start_run(config, folder, init, workers)
    run.say(describe(run, target))
    train(run, CrossEntropy(run) if config.stage == "ce" else GroupObjective(run))
    run.complete()
    run.say(f"done: {folder}, best val CIDEr {100 * run.state.best_score:.1f} at step {run.state.best_step}")


if __name__ == "__main__":
    run_program(main)
