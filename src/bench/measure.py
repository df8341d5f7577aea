"""Measure a set of phases in one process, and print one JSON line, after the output of the libraries.

python -m src.bench.measure features|pixels|host|compile [key=value ...]
The encoder needs other CPU instructions than the rest (src.runtime.environment), and a process has only one choice.
"""

import json
import resource
import sys
from collections.abc import Iterable
from typing import Any

from src.bench.sizes import parse
from src.bench.timing import timed
from src.runtime.environment import prepare_environment, run_program


def main() -> None:
    """Measure the set that the first argument names."""
    what, *arguments = sys.argv[1:]
    config, sizes = parse(arguments)
    prepare_environment(convolutions=what == "pixels")
    import mindspore as ms

    from src.bench.floors import floors, reward_floor
    from src.bench.host import host_phases
    from src.bench.phases import compile_seconds, feature_phases, measure_ceilings, pixel_phases
    from src.models.encoders.build import build_encoder
    from src.runtime.device import setup_device

    setup_device(config)
    result: dict[str, Any]
    if what == "features":
        result = {"ceilings": measure_ceilings(sizes.repeats)}
        result["phases"] = times(feature_phases(config, sizes), sizes.repeats)
    elif what == "pixels":
        result = {"phases": times(pixel_phases(config, sizes), sizes.repeats)}
        ms.set_context(mode=ms.PYNATIVE_MODE)  # floors are counted while Python runs the encoder
        kind, variant, size = config.encoder.kind, config.encoder.variant, config.data.image_size
        encoder = build_encoder(kind, variant=variant, checkpoint=None, image_size=size)
        result["floors"] = floors(config, sizes, encoder)
    elif what == "host":
        result = {"phases": times(host_phases(sizes), sizes.repeats), "floors": {"reward": reward_floor(sizes)}}
    else:
        result = {"compile_s": compile_seconds(feature_phases(config, sizes))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"peak_memory_mb": peak}))


def times(phases: Iterable, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds, captions/s and compile seconds of each phase."""
    result = {}
    for phase in phases:
        timing = timed(phase.call, repeats)
        result[phase.name] = timing._asdict() | {"captions_per_s": phase.captions / timing.seconds}
    return result


if __name__ == "__main__":
    run_program(main)
