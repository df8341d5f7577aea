"""Run each zone once on a device and on the CPU, with the same parameters and inputs, and measure the differences.

A process has one device. The process with the accelerator records the inputs and outputs of each zone; this program
repeats them on the CPU and compares: python -m src.readiness.compare FOLDER DEVICE VOCAB CONFIG [key=value ...]

Every difference is 0 if both agree. Letters: M rows, T tokens.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config.load import load_config
from src.runtime.environment import for_modules, prepare_environment, run_program
from src.runtime.files import given_file
from src.runtime.text_tables import markdown_table

if TYPE_CHECKING:
    from src.readiness.compiled_graphs import Zone

# The largest difference for products in float32; and for factors rounded to 11 bits, as HF32 on Ascend 910B, float16 on
# 910 and TF32 on GPU do: at least three times the effect of rounding all weights to float16, measured on CPU with the
# configurations of COCO and of the demo.
TOLERANCES = {
    "features": (1e-4, 5e-3),  # norm of the difference / norm
    "log-probs": (1e-4, 5e-3),  # root of the mean square of the difference, nats
    "tokens": (0.01, 0.5),  # share that differ, or follow one in their row that does
    "values": (1e-3, 0.02),  # loss, gradient norm and statistics: the largest |difference| / max(|value|, 0.01)
    "gradient sums": (1e-4, 0.05),  # of a change: norm of the difference / norm
    "moments": (1e-4, 0.05),
    "weights": (0.02, 0.4),  # AdamW's first step is equally long for a gradient that is only rounding
    "step counter": (0.0, 0.0),
}
_OUTPUTS = {"encoder": "features", "reference": "log-probs", "gradient": "values", "update": "values"}  # others: ids


def record_zone(zone: "Zone", folder: Path) -> None:
    """Run a zone on this process's device; save its parameters before and after, and its outputs, to a .npz file."""
    before = {f"before.{name}": value for name, value in _parameters(zone).items()}
    np.savez(folder / f"{zone.name}.npz", **before, **_run(zone))


def output_differences(
    zone: str, got: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> Iterator[tuple[str, float]]:
    """The differences of a zone's outputs.

    Samplers and decoders return ids [M, T], a mask, log-probs [M, T] or [M], and perhaps ids of greedy completions.
    """
    kind = _OUTPUTS.get(zone)
    error = got[0] - expected[0]
    if zone.endswith("_start"):  # keys and values, then the first token and what is carried
        for values, truth in zip(got, expected):
            if truth.ndim == 3:
                yield "features", float(np.linalg.norm(values - truth)) / max(float(np.linalg.norm(truth)), 1e-30)
        return
    if zone.endswith("_step"):  # tokens [M], what is carried, and perhaps tokens, mask and log-probs
        yield "tokens", float((got[0] != expected[0]).mean())
        return
    if kind == "features":
        yield kind, float(np.linalg.norm(error)) / max(float(np.linalg.norm(expected[0].astype(np.float64))), 1e-30)
    elif kind == "log-probs":
        yield kind, _root_mean_square(error)
    elif kind == "values":
        yield kind, float(np.max(np.abs(error) / np.maximum(np.abs(expected[0]), 0.01)))
    else:
        agreed = _agreed(got[0], expected[0])
        yield "tokens", 1.0 - agreed.mean()
        scored = agreed if expected[2].ndim == 2 else agreed.all(1)
        yield "log-probs", _root_mean_square(got[2][scored] - expected[2][scored])
        for greedy, truth in zip(got[3:], expected[3:]):
            yield "tokens", 1.0 - _agreed(greedy, truth).mean()


def _agreed(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Bool [M, T]: this id and all before it in the row are equal."""
    return np.logical_and.accumulate(got == expected, axis=1)


def _root_mean_square(values: np.ndarray) -> float:
    """0 for no values."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def change_differences(
    recorded: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """The difference of the changes after.X - before.X for all parameters of a kind as one vector, if any changed."""
    squares: dict[str, np.ndarray] = {}
    for key in expected:
        if key.startswith("after."):
            name = key.removeprefix("after.")
            after = expected[key].astype(np.float64)
            error, change = after - recorded[key], after - recorded[f"before.{name}"]
            kind = "moments" if ".adam_" in name else "gradient sums" if "sum." in name else "weights"
            kind = "step counter" if np.issubdtype(expected[key].dtype, np.integer) else kind
            total = squares.setdefault(kind, np.zeros(2))
            total += np.vdot(error, error), np.vdot(change, change)
    for kind, (error, change) in squares.items():
        if error or change:
            yield kind, float(np.sqrt(error / max(change, 1e-60)))


def _run(zone: "Zone") -> dict[str, np.ndarray]:
    """output.N and after.<parameter> of a run on this process's device."""
    outputs = _leaves(zone.cell(*zone.tensors()))
    arrays = {f"output.{number}": output.asnumpy() for number, output in enumerate(outputs)}
    if zone.name in ("gradient", "update"):
        arrays |= {f"after.{name}": value for name, value in _parameters(zone).items()}
    return arrays


def _leaves(value: Any) -> list[Any]:
    """The tensors of nested tuples."""
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def _parameters(zone: "Zone") -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in zone.cell.get_parameters()}


def compare_on_cpu(folder: Path, device: str, vocab: int, config: Path, overrides: Sequence[str]) -> bool:
    """Run this program on what was recorded on `device`; returns whether everything is within tolerance."""
    command = [sys.executable, "-m", "src.readiness.compare", str(folder), device, str(vocab), str(config)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MS_DEV_SAVE_GRAPHS")}
    return subprocess.run([*command, *overrides], **for_modules(environment)).returncode == 0


def main() -> None:
    """Print a line for each comparison; status 1 if one exceeds its tolerance."""
    folder, device, vocab, config_file, *overrides = sys.argv[1:]
    config = load_config(given_file(config_file), [*overrides, "device=CPU", "device_id=null"])
    prepare_environment(convolutions=True)
    from mindspore import Tensor

    from src.readiness.compiled_graphs import zones
    from src.runtime.device import setup_device

    setup_device(config)
    rows, exceeded = [], []
    for zone in zones(config, int(vocab)):
        recorded = dict(np.load(Path(folder, f"{zone.name}.npz"), allow_pickle=False))
        for parameter in zone.cell.get_parameters():
            parameter.set_data(Tensor(recorded[f"before.{parameter.name}"]))
        expected = _run(zone)
        outputs = [(recorded[name], value) for name, value in expected.items() if name.startswith("output.")]
        differences = output_differences(zone.name, *zip(*outputs))
        for what, difference in (*differences, *change_differences(recorded, expected)):
            rows.append([zone.name, what, f"{difference:.1e}", *(f"{limit:g}" for limit in TOLERANCES[what])])
            limit = TOLERANCES[what][device != "CPU"]
            if not difference <= limit:  # NaN too
                exceeded.append(f"blocking: {zone.name}: {what} differ by {difference:.1e}, more than {limit:g}")
    columns = ["zone", "what", f"{device} against CPU", "allowed in float32", "with rounded products"]
    print(*markdown_table(columns, rows), *exceeded, sep="\n")
    sys.exit(1 if exceeded else 0)


if __name__ == "__main__":
    run_program(main)
