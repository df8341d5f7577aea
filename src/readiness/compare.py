"""One run of each zone on a device and on the CPU, with the same parameters and inputs, and how far they are apart.

A process has one device. The one that has the accelerator records what each zone made of what; this program, on the
CPU, repeats it and compares: python -m src.readiness.compare --recorded FOLDER --device Ascend --vocab N --config FILE

Every difference is 0 where both agree. Letters: M rows, T tokens.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.config.load import load_config
from src.runtime.environment import for_modules, prepare_environment, run_program
from src.runtime.files import given_file, given_path
from src.runtime.text_tables import markdown_table

if TYPE_CHECKING:
    from src.readiness.graphs import Zone

# The largest difference where products are computed in float32; and where their factors are rounded to 11 bits, as HF32
# on Ascend 910B, float16 on 910 and TF32 on GPU do: three times and more what rounding all weights to float16 makes of
# the configurations of COCO and of the demo on CPU.
TOLERANCES = {
    "features": (1e-4, 5e-3),  # norm of the difference / norm
    "log-probs": (1e-4, 5e-3),  # root of the mean square of the difference, nats
    "tokens": (0.01, 0.5),  # share that differ, or follow one of their row that does
    "values": (1e-3, 0.02),  # loss, gradient norm and statistics: the largest |difference| / max(|value|, 0.01)
    "gradient sums": (1e-4, 0.05),  # of a change: norm of the difference / norm
    "moments": (1e-4, 0.05),
    "weights": (0.02, 0.4),  # AdamW's first step is as long for a gradient that is rounding alone
    "step counter": (0.0, 0.0),
}
_OUTPUTS = {"encoder": "features", "reference": "log-probs", "gradient": "values", "update": "values"}  # others: ids


def record_zone(zone: "Zone", folder: Path) -> None:
    """Run a zone on this process's device; FOLDER/<zone>.npz gets its parameters before and after, and its outputs."""
    before = _parameters(zone)
    arrays = _run(zone) | {f"before.{name}": value for name, value in before.items()}
    np.savez(folder / f"{zone.name}.npz", **arrays)


def compare_zone(recorded: dict[str, np.ndarray], zone: "Zone") -> Iterator[tuple[str, float]]:
    """Repeat a recorded zone on this process's device: what is compared (a key of TOLERANCES), and its difference."""
    from mindspore import Tensor

    for parameter in zone.cell.get_parameters():
        parameter.set_data(Tensor(recorded[f"before.{parameter.name}"]))
    expected = _run(zone)
    names = [name for name in expected if name.startswith("output.")]
    yield from output_differences(zone.name, [recorded[name] for name in names], [expected[name] for name in names])
    yield from change_differences(recorded, expected)


def output_differences(
    zone: str, got: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> Iterator[tuple[str, float]]:
    """Of a zone's outputs. Samplers and decoders give ids [M, T], a mask, log-probs [M, T] or [M], and perhaps the ids
    of greedy completions.
    """
    kind = _OUTPUTS.get(zone)
    if kind is None:
        agreed = _agreed(got[0], expected[0])
        yield "tokens", 1.0 - agreed.mean()
        scored = agreed if expected[2].ndim == 2 else agreed.all(1)
        yield "log-probs", root_mean_square(got[2][scored] - expected[2][scored])
        if len(expected) > 3:
            yield "tokens", 1.0 - _agreed(got[3], expected[3]).mean()
    elif kind == "features":
        yield kind, relative_norm(got[0], expected[0])
    elif kind == "log-probs":
        yield kind, root_mean_square(got[0] - expected[0])
    else:
        yield kind, float(np.max(np.abs(got[0] - expected[0]) / np.maximum(np.abs(expected[0]), 0.01)))


def _agreed(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Bool [M, T]: the ids are equal, and all before them in their row."""
    return np.logical_and.accumulate(got == expected, axis=1)


def change_differences(recorded: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Of the changes after.X - before.X of all parameters of a kind, as one vector, where there are any."""
    squares: dict[str, np.ndarray] = {}
    for key in expected:
        if key.startswith("after."):
            name = key.removeprefix("after.")
            after = expected[key].astype(np.float64)
            error, change = after - recorded[key], after - recorded[f"before.{name}"]
            total = squares.setdefault(_kind(name, expected[key].dtype), np.zeros(2))
            total += np.vdot(error, error), np.vdot(change, change)
    for kind, (error, change) in squares.items():
        if error or change:
            yield kind, float(np.sqrt(error / max(change, 1e-60)))


def relative_norm(got: np.ndarray, expected: np.ndarray) -> float:
    """|got - expected| / |expected|, Euclidean; 0 for two zeros."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(got - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def root_mean_square(values: np.ndarray) -> float:
    """0 for no values."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _kind(name: str, dtype: np.dtype) -> str:
    """Which vector a parameter belongs to. MindFormers' AdamW calls its moments adam_m and adam_v."""
    if np.issubdtype(dtype, np.integer):
        return "step counter"
    return "moments" if ".adam_" in name else "gradient sums" if "sum." in name else "weights"


def _run(zone: "Zone") -> dict[str, np.ndarray]:
    """output.N and after.<parameter> of a run on this process's device."""
    from mindspore import Tensor

    outputs = zone.cell(*map(Tensor, zone.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays = {f"output.{number}": output.asnumpy() for number, output in enumerate(outputs)}
    if zone.name in ("gradient", "update"):
        arrays |= {f"after.{name}": value for name, value in _parameters(zone).items()}
    return arrays


def _parameters(zone: "Zone") -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in zone.cell.get_parameters()}


def compare_on_cpu(folder: Path, device: str, vocab: int, config: Path, overrides: Sequence[str]) -> bool:
    """Run this program on what has been recorded on `device`; returns whether all is within tolerance."""
    options = ["--recorded", str(folder), "--device", device, "--vocab", str(vocab), "--config", str(config)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MS_DEV_SAVE_GRAPHS")}
    command = [sys.executable, "-m", "src.readiness.compare", *options, *overrides]
    done = subprocess.run(command, **for_modules(environment))
    return done.returncode == 0


def main() -> None:
    """Print a line for each comparison; status 1 where one is beyond its tolerance."""
    parser = argparse.ArgumentParser(description="Repeat recorded zones on the CPU, and compare.")
    parser.add_argument("--recorded", type=given_path, required=True, help="folder of record_zone's files")
    parser.add_argument("--device", required=True, help="what they were recorded on")
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--config", type=given_file, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, [*arguments.overrides, "device=CPU", "device_id=null"])
    prepare_environment(convolutions=True)
    from src.readiness.graphs import zones
    from src.runtime.device import setup_device

    setup_device(config)
    rounded = arguments.device != "CPU"
    rows, beyond = [], []
    for zone in zones(config, arguments.vocab):
        recorded = dict(np.load(arguments.recorded / f"{zone.name}.npz", allow_pickle=False))
        for what, difference in compare_zone(recorded, zone):
            rows.append([zone.name, what, f"{difference:.1e}", *(f"{limit:g}" for limit in TOLERANCES[what])])
            limit = TOLERANCES[what][rounded]
            if not difference <= limit:  # NaN too
                beyond.append(f"{zone.name}: {what} differ by {difference:.1e}, more than {limit:g}")
    columns = ["zone", "what", f"{arguments.device} against CPU", "allowed in float32", "with rounded products"]
    print(*markdown_table(columns, rows), sep="\n")
    for line in beyond:
        print(f"in the way: {line}")
    sys.exit(1 if beyond else 0)


if __name__ == "__main__":
    run_program(main)
