"""How much faster two workers of one core each are than one: whole GRPO steps of the demo by wall clock.

python tests/scaling.py [--folder FOLDER] [--rounds 3] [key=value ...]
One and two workers are run in turn, each pinned to a core of its own; a step is a rollout with its reward, its updates
and all that crosses between workers. Prints the median seconds of both and their ratio.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROLLOUTS, WARM_UP = 10, 3
SETTINGS = ["device=CPU", f"rl.rollouts={ROLLOUTS}", f"eval.every={ROLLOUTS}"]


def main() -> None:
    """Train CE for a little, then time both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    from src.runtime.cluster import Cluster
    from src.runtime.launch import launch

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scaling-"))
    common = [f"data.root={folder}/demo", *arguments.overrides]
    init = folder / "demo-ce/checkpoints/best"
    if not init.exists():
        train = ["train.py", "--config", "configs/demo/ce.yaml", f"output_root={folder}", "ce.epochs=2", *common]
        launch(train, Cluster(1), folder / "logs")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for size, found in seconds.items():
            settings = [*SETTINGS, *common, f"output_root={folder}/{size}", f"init_checkpoint={init}", "fresh=true"]
            program = ["tests/scaling.py", "worker", "--config", "configs/demo/grpo.yaml", *settings]
            launch(program, Cluster(size), folder / f"logs-{size}")
            found.append(json.loads((folder / f"{size}/demo-grpo/seconds.json").read_text()))
            print(f"{size} workers: {found[-1]:.3f} s", flush=True)
    one, two = median(seconds[1]), median(seconds[2])
    print(f"a step takes {one:.3f} s on one worker, {two:.3f} s on two: {one / two:.2f} times as fast")


def worker() -> None:
    """train.py on one core, which leaves the median seconds between two rollouts."""
    os.sched_setaffinity(0, {int(os.environ.get("RANK_ID", 0))})  # before MindSpore counts cores
    import train
    from src.runtime.environment import prepare_environment, run_program

    del sys.argv[1]
    starts = []

    def timed_main() -> None:
        prepare_environment(convolutions=True)
        from src.rl.collector import RolloutCollector

        collect = RolloutCollector.collect

        def timed(collector: RolloutCollector, index: int):
            starts.append(time.perf_counter())
            if index == ROLLOUTS - 1 and collector.workers.is_first:
                steps = [end - start for start, end in zip(starts[WARM_UP:], starts[WARM_UP + 1 :])]
                (collector.config.run_folder / "seconds.json").write_text(json.dumps(median(steps)))
            return collect(collector, index)

        RolloutCollector.collect = timed
        train.main()

    run_program(timed_main)


if __name__ == "__main__":
    worker() if sys.argv[1:2] == ["worker"] else main()
