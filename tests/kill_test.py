"""Kills a run of GRPO again and again by kill -9, and checks that nothing is lost. Not a pytest: it takes long.

python tests/kill_test.py [--kills 30] [--devices 2] [--folder FOLDER]

First CE and an undisturbed GRPO run are made, then the same run is killed (one worker, or all) inside a save, between
the passes of a rollout, or anywhere, and started again. After every kill the checkpoints must be readable, and at the
end parameters and optimiser must be those of the undisturbed run, bit by bit. Status 1 and a line where they are not.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.runtime.environment import prepare_environment

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["device=CPU", "demo.train=256", "demo.val=32", "demo.test=32", "log_every=1", "eval.every=1"]
CE = ["ce.epochs=2"]
RL = ["rl.rollouts=150", "rl.rollout_images=32", "rl.sample_images=32", "rl.update_images=8"]
UPDATES_PER_PASS, UPDATES_PER_ROLLOUT = 4, 8  # of RL, with the two passes of configs/demo/grpo.yaml


def main() -> None:
    """Run the test and print one line for each kill, then the counts."""
    parser = argparse.ArgumentParser(description="Kill a run again and again.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--devices", type=int, default=2, help="workers, at least 2")
    parser.add_argument("--folder", type=Path, default=None, help="default: a new one under the temporary folder")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-test-"))
    folder.mkdir(parents=True, exist_ok=True)
    prepare_environment(convolutions=False)
    print(f"in {folder}", flush=True)
    port = 24_000 + os.getpid() % 1_000 * 8

    def start(goal: str, root: Path, *settings: str) -> subprocess.Popen:
        nonlocal port
        port = 24_000 + (port - 24_000 + 8) % 8_000
        command = [sys.executable, "-m", "src.commands.pipeline", goal, "--devices", str(arguments.devices)]
        command += ["--master", f"127.0.0.1:{port}", *SETTINGS, f"data.root={folder}/demo", f"output_root={root}"]
        log = open(folder / "runs.log", "ab")  # noqa: SIM115 - the child's
        return subprocess.Popen([*command, *settings], cwd=ROOT, stdout=log, stderr=log)

    best = folder / "whole/demo-ce/checkpoints/best"
    if not best.exists():
        _want(start("ce", folder / "whole", *CE).wait() == 0, "CE failed")
    settings = (*RL, f"init_checkpoint={best}")
    _want(start("grpo", folder / "whole", *settings).wait() == 0, "the undisturbed run failed")
    run = folder / "cut/demo-grpo"
    rng = random.Random(0)
    kinds = Counter()
    while sum(kinds.values()) < arguments.kills:
        started = time.time()
        process = start("grpo", folder / "cut", *settings)
        wanted = ("save", "passes", "save", "anywhere", "save")[sum(kinds.values()) % 5]
        everyone = rng.random() < 0.5
        if not _wait_until_it_goes_on(process, run):
            break
        pids = _workers(run, arguments.devices)
        if not everyone:
            pids = pids[:1] if wanted == "save" else rng.sample(pids, 1)  # the first worker writes
        if not _wait_for(wanted, process, run, rng, started):
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        step = _last_step(run)
        status = process.wait()
        where = _where(run, step, started)
        kinds[where, "all workers" if everyone else "one worker"] += 1
        _want(status == 3, f"status {status} after a kill")
        _check_readable(run)
        print(f"kill {sum(kinds.values())}: {where}, step {step}, status {status}", flush=True)
    _want(sum(kinds.values()) == arguments.kills, f"the run was over after {sum(kinds.values())} kills")
    _want(start("grpo", folder / "cut", *settings).wait() == 0, "the last restart failed")
    _compare(folder / "whole/demo-grpo", run)
    for (where, who), count in sorted(kinds.items()):
        print(f"{count} kills {where}, {who}")
    print("every restart went on; parameters and optimiser are bit-identical; no checkpoint was unreadable")


def _want(holds: bool, words: str) -> None:
    if not holds:
        print(f"failed: {words}", file=sys.stderr)
        sys.exit(1)


def _wait_until_it_goes_on(process: subprocess.Popen, run: Path) -> bool:
    """Until the run has made another update; False where it has ended."""
    first = _last_step(run)
    while _last_step(run) == first or not _workers(run, 1):
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def _wait_for(wanted: str, process: subprocess.Popen, run: Path, rng: random.Random, started: float) -> bool:
    """Until the run is where it shall be killed; False where it has ended."""
    after = time.monotonic() + rng.uniform(0, 4)
    while time.monotonic() < after or not (
        (wanted == "save" and _is_saving(run, started))
        or (wanted == "passes" and _last_step(run) % UPDATES_PER_ROLLOUT == UPDATES_PER_PASS)
        or wanted == "anywhere"
    ):
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def _where(run: Path, step: int, started: float) -> str:
    if _is_saving(run, started):  # a killed save leaves its file
        return "inside a save"
    return "between the passes of a rollout" if step % UPDATES_PER_ROLLOUT == UPDATES_PER_PASS else "elsewhere"


def _is_saving(run: Path, started: float) -> bool:
    """Whether a checkpoint is being written by the processes that were started then; killed ones have left others."""
    for part in (run / "checkpoints").glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_mtime > started:
                return True
    return False


def _last_step(run: Path) -> int:
    try:
        return json.loads((run / "metrics.jsonl").read_text().rstrip("\n").rpartition("\n")[2])["step"]
    except (OSError, ValueError):
        return -1


def _workers(run: Path, devices: int) -> list[int]:
    pids = []
    for rank in range(devices):
        with contextlib.suppress(OSError, ValueError):
            pids.append(json.loads((run / f"logs/train/worker_{rank}.json").read_text())["pid"])
    return pids


def _check_readable(run: Path) -> None:
    from src.models.checkpoint import read_checkpoint

    for name in ("last", "previous", "best"):
        path = run / "checkpoints" / name
        if path.exists():
            read_checkpoint(path)


def _compare(one: Path, two: Path) -> None:
    from src.models.checkpoint import read_checkpoint

    for name in ("last", "best"):
        (_, ours), (_, theirs) = (read_checkpoint(run / "checkpoints" / name) for run in (one, two))
        _want(ours.keys() == theirs.keys(), f"{name} holds other parameters")
        for key, array in ours.items():
            _want((array == theirs[key]).all(), f"{key} of {name} differs")


if __name__ == "__main__":
    main()
