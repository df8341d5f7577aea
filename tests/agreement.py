"""How far one worker and two agree: ten CE steps, ten fresh rollouts, ten GRPO updates on the same stored rollouts.

python tests/agreement.py [--folder FOLDER]
Prints the largest relative difference of every logged number and of the parameters, and the number of differing draws.
It takes minutes, so no test runs it; tests/test_workers.py has a smaller one.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from src.runtime.environment import prepare_environment, run_program

ROLLOUTS = 10
COMPLETIONS = ("completion_ids", "completion_mask")
SETTINGS = [
    *("device=CPU", "log_every=1", "demo.train=320", "demo.val=32", "demo.test=32", "tokenizer.min_count=2"),
    *("ce.epochs=1", "ce.patience=0", "ce.batch_images=32", f"rl.rollouts={ROLLOUTS}", "rl.passes=1"),
    *("rl.rollout_images=32", "rl.sample_images=32", "rl.update_images=32", f"eval.every={ROLLOUTS}"),
]


def main() -> None:
    """Run both stages on one worker and on two, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    arguments = parser.parse_args()
    from src.runtime.cluster import Cluster
    from src.runtime.launch import launch

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="agreement-"))
    for size in (1, 2):
        settings = [*SETTINGS, f"data.root={folder}/demo", f"output_root={folder}/{size}"]
        train = ["train.py", "--config", "configs/demo/ce.yaml", *settings]
        launch(train, Cluster(size), folder / f"logs-ce-{size}")
        again = ["tests/agreement.py", "worker", str(folder), str(size)]
        launch(again, Cluster(size), folder / f"logs-grpo-{size}")
    for stage in ("ce", "grpo"):
        compare(stage, *(folder / f"{size}/demo-{stage}" for size in (1, 2)))
    rows = [np.load(folder / f"{size}/fresh.npz") for size in (1, 2)]
    different = (rows[0]["ids"] != rows[1]["ids"]) & (rows[0]["mask"] > 0)
    first = (different.cumsum(1) == 1) & different  # what follows a differing draw is drawn from another distribution
    print(f"draws: {int(first.sum())} of {int(rows[0]['mask'].sum())} differ in {ROLLOUTS} fresh rollouts")


def follow(folder: Path, size: int) -> None:
    """Sample ten rollouts with the CE policy of one worker, then train on those that one worker has stored."""
    prepare_environment(convolutions=True)
    from src.config.load import load_config
    from src.runtime.workers import join_workers

    init = folder / "1/demo-ce/checkpoints/last"
    settings = [*SETTINGS, f"data.root={folder}/demo", f"output_root={folder}/{size}", f"init_checkpoint={init}"]
    config = load_config("configs/demo/grpo.yaml", settings)
    workers = join_workers(config)

    from src.rl.collector import RolloutCollector
    from src.rl.rollout import Rollout
    from src.runtime.device import setup_device
    from src.training.loop import GroupObjective, train
    from src.training.run import start_run

    setup_device(config)
    run = start_run(config, config.run_folder, init, workers)
    collect = RolloutCollector.collect

    def stored(collector: RolloutCollector, index: int) -> tuple[Rollout, dict[str, float]]:
        if index == 0:  # nothing has been updated yet
            fresh = [collect(collector, number) for number in range(ROLLOUTS)]
            if workers.is_first:
                ids, mask = (np.concatenate([getattr(rollout, name) for rollout, _ in fresh]) for name in COMPLETIONS)
                np.savez(folder / f"{size}/fresh.npz", ids=ids, mask=mask)
            if size == 1:
                for number, (rollout, _) in enumerate(fresh):
                    np.savez(folder / f"rollout{number}.npz", **asdict(rollout))
        times = {"time/rollout_s": 0.0, "time/reward_s": 0.0, "rollout/truncated": 0.0}
        return Rollout(**np.load(folder / f"rollout{index}.npz")), times

    RolloutCollector.collect = stored
    train(run, GroupObjective(run))


def compare(stage: str, one: Path, two: Path) -> None:
    """Print the largest difference of every logged number, relative to its largest value, and of the parameters."""
    from safetensors.numpy import load_file

    from src.training.metrics import read_lines

    lines = [[line for line in read_lines(folder / "metrics.jsonl") if "train/loss" in line] for folder in (one, two)]
    print(f"{stage}: {len(lines[0])} updates")
    for name in (name for name in lines[0][0] if name.startswith("train/")):
        ours, theirs = (np.array([line[name] for line in log]) for log in lines)
        print(f"  {name}: {np.abs(ours - theirs).max() / np.abs(ours).max():.1e}")
    files = [load_file(folder / "checkpoints/last") for folder in (one, two)]
    names = [name for name in files[0] if name.startswith("model.")]
    ours, theirs = (np.concatenate([file[name].ravel() for name in names]) for file in files)
    print(f"  parameters, as one vector: {np.linalg.norm(ours - theirs) / np.linalg.norm(ours):.1e}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        run_program(lambda: follow(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        run_program(main)
