"""Check whether the graphs of a configuration can run on Ascend. Needs neither data nor a device.

python -m src.readiness --config FILE [--vocab 30522] [--devices 1] [key=value ...]
Compiles every device zone, lists operators without an Ascend kernel, dynamic shapes, host reads and wide types, and
estimates the device's memory. On an Ascend device or a GPU it runs each zone once, and compares with the CPU
(src/readiness/compare.py). The exit status is 1 if it finds a blocking problem.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.load import load_config
from src.config.rules import check_workers, flatten
from src.config.schema import Config
from src.runtime.environment import prepare_environment, run_program
from src.runtime.errors import InputError
from src.runtime.files import ROOT, given_file
from src.runtime.text_tables import markdown_table

if TYPE_CHECKING:
    from src.readiness.measure import Measured

SIZES = "configs/qwen2_5_vl/3b"  # config.json of Qwen2.5-VL-3B-Instruct
DEVICE_GB = (32, 64)  # memory of an Ascend 910 and of a 910B


def main() -> None:
    """Print a table of the zones, the estimated memory, and the blocking problems."""
    parser = argparse.ArgumentParser("python -m src.readiness", description="Check that graphs can run on Ascend.")
    parser.add_argument("--config", type=given_file, required=True, help="a YAML file of configs/")
    parser.add_argument("--vocab", type=int, help="tokens (default: 30522 for word pieces, 10000 for words)")
    parser.add_argument("--devices", type=int, default=1, help="devices that share each batch (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    arguments = parser.parse_intermixed_args()
    if arguments.vocab is not None and arguments.vocab < 10:
        raise InputError(f"--vocab {arguments.vocab} must be at least 10")
    if arguments.devices < 1:
        raise InputError(f"--devices {arguments.devices} must be at least 1")
    given = load_config(arguments.config, arguments.overrides)
    check_workers(given, arguments.devices)
    overrides = [*arguments.overrides, *shares(given, arguments.devices), *without_weights(given)]
    config = load_config(arguments.config, overrides)
    prepare_environment(convolutions=True)
    vocab = arguments.vocab or (30522 if config.tokenizer.kind == "wordpiece" else 10000)
    with tempfile.TemporaryDirectory(prefix="graphs-") as folder:
        # MindSpore reads these when imported. The graphs of all passes would take gigabytes, and twice the time.
        os.environ.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=folder, MS_DEV_DUMP_IR_PASSES="validate")
        from src.readiness.compare import compare_on_cpu
        from src.readiness.few_layers import variants
        from src.readiness.measure import combined, measure
        from src.runtime.device import setup_device

        target = setup_device(config)
        form = "Ascend" if target == "CPU" else target  # a GPU runs the zones, and lacks Ascend's forms
        results, weights = [], []
        few: list[str] = []
        for few, weight in reversed(list(variants(config, Path(folder)))):  # the last one, of the fewest layers, is run
            variant, record = load_config(arguments.config, [*overrides, *few]), target != "CPU"
            results.append(measure(variant, vocab, arguments.devices, form, Path(folder), record=record))
            weights.append(weight)
        found = combined(results, weights)
        print("\n".join(table(found)), end="\n\n", flush=True)
        problems = [f"{zone}: {line}" for zone, lines in found.problems.items() for line in lines]
        if len(results) > 1:
            print("the numbers follow from graphs of two and of four layers")
        if target == "CPU":
            print("no Ascend or GPU found: zones were compiled, not run")
        elif not compare_on_cpu(Path(folder), target, vocab, arguments.config, [*overrides, *few]):
            problems.append(f"results on {target} differ from the CPU (see the table above)")
    peak = max(numbers[2] for numbers in found.numbers.values())
    gigabytes = (found.held + peak) / 2**30
    fits = ", ".join(f"{'fits' if gigabytes < size else 'does not fit'} {size} GB" for size in DEVICE_GB)
    where = "device" if arguments.devices == 1 else f"each of {arguments.devices} devices"
    print(
        f"estimated memory of {where}: {found.held / 2**30:.1f} GB held, {peak / 2**30:.1f} GB at once, "
        f"{gigabytes:.1f} GB in all, {fits} (without workspaces of kernels)"
    )
    if gigabytes >= max(DEVICE_GB):
        problems.append("memory: reduce the batches, or increase micro_batches")
    if problems:
        print(*(f"blocking: {line}" for line in problems), sep="\n")
        sys.exit(1)
    print(f"{arguments.config}: ready for Ascend")


def table(found: "Measured") -> list[str]:
    """The zones with their operators and memory."""
    rows = []
    for zone, (operators, parameters, peak) in found.numbers.items():
        counts = (operators, len(found.operators[zone]), len(found.problems[zone]))
        rows.append([zone, *(f"{number:,.0f}" for number in (*counts, parameters / 2**20, peak / 2**20))])
    return markdown_table(["zone", "operators", "different", "blocking", "parameters, MB", "at once, MB"], rows)


def shares(config: Config, devices: int) -> Iterator[str]:
    """Yield overrides that give the batches of each of several devices."""
    section = "ce.batch_images" if config.stage == "ce" else "rl.rollout_images rl.sample_images rl.update_images"
    values = flatten(asdict(config))
    for key in (*section.split(), "eval.batch_images"):
        yield f"{key}={max(1, values[key] // devices)}"


def without_weights(config: Config) -> list[str]:
    """Return overrides with which the graphs of a configuration are built without its pretrained files."""
    changed = []
    if config.encoder.kind != "vit":  # its sizes are in its folder
        changed.append("encoder.checkpoint=null")
    if config.precision == "bfloat16":  # CPUs cannot compile it; graphs of float16 contain the same operators and more
        changed.append("precision=float16")
    if config.policy.kind == "qwen2_5_vl" and not Path(config.policy.path or "").is_dir():
        print(f"policy.path={config.policy.path} is missing: checked with the sizes in {SIZES}")
        changed.append(f"policy.path={ROOT / SIZES}")
    return changed


if __name__ == "__main__":
    run_program(main)
