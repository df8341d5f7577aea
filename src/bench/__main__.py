"""Measure the speed of each phase of training, and compare it with what this machine could reach.

python -m src.bench [images=8 group=5 vocab=30522 length=20 layers=1 width=512 encoder=resnet50 trainable=true ...]
Other keys: beams, documents, rewarded, scored, repeats (src/bench/sizes.py), and every key of the configuration.
Prints a table, then one JSON line.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from src.bench.sizes import SHORT, parse
from src.bench.timing import Work, timed
from src.config.rules import flatten
from src.runtime.environment import end_with_parent, for_modules, prepare_environment, run_program
from src.runtime.text_tables import markdown_table

# Each is measured in its own process (python -m src.bench SET [key=value ...]), which prints one JSON line last: the
# encoder needs other CPU instructions than the rest (src.runtime.environment), and a process has only one choice.
SETS = ("features", "pixels", "host", "compile")
LANGUAGE_SETS = ("sample", "update", "update_adapters")  # of a pretrained language model


def main() -> None:
    """Run every set of phases, one after the other, and print the results."""
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return
    if arguments and arguments[0] in (*SETS, *LANGUAGE_SETS):
        measure_here(*arguments)
        return
    config, sizes = parse(arguments)
    if config.policy.is_pretrained:
        print_language(arguments)
        return
    parts = {what: measure(what, arguments) for what in ("features", "pixels", "host")}
    with tempfile.TemporaryDirectory(prefix="compile-cache-") as folder:
        cache = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": folder}
        compile_s = {state: measure("compile", arguments, cache)["compile_s"] for state in ("cold", "cached")}
    ceilings = parts["features"]["ceilings"]
    works = parts["pixels"]["floors"] | parts["host"]["floors"]
    phases = {name: phase for part in parts.values() for name, phase in part["phases"].items()}
    for name, phase in phases.items():
        phase["of_floor"] = Work(*works[name]).seconds(ceilings) / phase["seconds"] if name in works else None
    flat = flatten(asdict(config))
    result = {
        "sizes": {name: flat[keys[0]] for name, keys in SHORT.items()} | asdict(sizes),
        "ceilings": ceilings,
        "phases": phases,
        "compile_s": compile_s,
        "peak_memory_mb": max(part["peak_memory_mb"] for part in parts.values()),
    }
    print("\n".join(table(result)), json.dumps(result), sep="\n")


def print_language(arguments: Sequence[str]) -> None:
    """Measure and print the phases of a pretrained language model: a table, then one JSON line."""
    from src.bench.language import language_table

    with tempfile.TemporaryDirectory(prefix="compile-cache-") as folder:
        cold, cached = {}, {}
        for what in LANGUAGE_SETS:
            cache = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": f"{folder}/{what}"}
            cold[what], cached[what] = (measure(what, arguments, cache) for _ in range(2))
    print("\n".join(language_table(cold, cached)), json.dumps({"cold": cold, "cached": cached}), sep="\n")


def measure(what: str, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> dict[str, Any]:
    """Measure a set of phases in another process; if it fails, exit with its status."""
    print(f"measuring: {what}", file=sys.stderr)
    command = [sys.executable, "-m", "src.bench", what, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent, **for_modules(os.environ | environment)
    )
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(what: str, *arguments: str) -> None:
    """Measure a set of phases in this process, and print the results as JSON."""
    config, sizes = parse(arguments)
    prepare_environment(convolutions=what == "pixels")
    import mindspore as ms

    from src.bench.floors import floors, reward_floor
    from src.bench.host import host_phases
    from src.bench.language import language_phase
    from src.bench.phases import Phase, compile_seconds, device_phases, measure_ceilings
    from src.models.encoders.build import build_encoder, encoder_settings
    from src.runtime.device import setup_device

    setup_device(config)
    result: dict[str, Any] = {}
    phases: Iterable[Phase] = ()
    if what in LANGUAGE_SETS:
        phases = [language_phase(config, sizes, what)]
    elif what == "host":
        phases, result["floors"] = host_phases(sizes), {"reward": reward_floor(sizes)}
    elif what == "compile":
        result["compile_s"] = compile_seconds(device_phases(config, sizes, cached=True))
    else:
        phases = device_phases(config, sizes, cached=what == "features")
    if what == "features":
        result["ceilings"] = measure_ceilings(sizes.repeats)
    result["phases"] = {}
    for phase in phases:
        timing = timed(phase.call, sizes.repeats)
        result["phases"][phase.name] = timing | {"captions_per_s": phase.captions / timing["seconds"]}
    if what == "pixels":
        ms.set_context(mode=ms.PYNATIVE_MODE)  # floors are counted while Python runs the encoder
        result["floors"] = floors(config, sizes, build_encoder(**encoder_settings(config), load=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"peak_memory_mb": peak}))


def table(result: Mapping[str, Any]) -> list[str]:
    """The lines of the report."""
    numbers = {"seconds": ".4f", "captions_per_s": ",.1f", "of_floor": ".1%", "compile_s": ".1f"}
    rows = [
        [name, *("" if phase[key] is None else format(phase[key], form) for key, form in numbers.items())]
        for name, phase in result["phases"].items()
    ]
    ceilings, compile_s = result["ceilings"], result["compile_s"]
    return [
        ", ".join(f"{key} {value}" for key, value in result["sizes"].items()),
        f"ceilings: {ceilings['matmul_gflops']:.0f} GFLOP/s in matrix products, {ceilings['bandwidth_gbs']:.1f} GB/s",
        "",
        *markdown_table(["phase", "seconds", "captions/s", "floor / seconds", "extra time of the first call, s"], rows),
        "",
        f"compiling sampler and update: {compile_s['cold']:.1f} s, from the cache {compile_s['cached']:.1f} s; "
        f"peak memory {result['peak_memory_mb']:,.0f} MB",
    ]


if __name__ == "__main__":
    run_program(main)
