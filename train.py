"""Train one stage: python train.py --config FILE [key=value ...]"""

from pathlib import Path

from src.commands.demo_data import make_demo_data
from src.config.load import config_parser, load_config
from src.config.rules import check_workers
from src.runtime.environment import prepare_environment, run_program


def main() -> None:
    """Parse the configuration, build the parts, call one loop. Heavy imports are deferred: bad input fails at once."""
    arguments = config_parser("Train one stage (ce, grpo or scst) of a captioner.").parse_intermixed_args()
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
        print(f"{folder} is complete; delete it to train again")
        return
    target = setup_device(config)
    run = start_run(config, folder, init, workers)
    run.say(describe(run, target))
    train(run, CrossEntropy(run) if config.stage == "ce" else GroupObjective(run))
    run.complete()
    run.say(f"done: {folder}, best val CIDEr {100 * run.state.best_score:.1f} at step {run.state.best_step}")


if __name__ == "__main__":
    run_program(main)
