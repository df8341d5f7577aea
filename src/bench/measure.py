"""One process of the benchmark: measures a set of phases and prints them, as one JSON line after the libraries' own.

python -m src.bench.measure features|pixels|host|compile [key=value ...]
The encoder needs other CPU instructions than the rest (src.runtime.environment), and a process has one choice.
"""

import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from src.bench.sizes import Sizes, parse
from src.bench.timing import Work, timed
from src.config.schema import Config
from src.runtime.environment import prepare_environment, run_program


def main() -> None:
    """Measure the set named by the first argument."""
    what, *arguments = sys.argv[1:]
    config, sizes = parse(arguments)
    prepare_environment(convolutions=what == "pixels")
    result = {"features": features, "pixels": pixels, "host": host, "compile": compilation}[what](config, sizes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"peak_memory_mb": peak}))


def features(config: Config, sizes: Sizes) -> dict[str, Any]:
    """The machine's ceilings, and the phases that start from features."""
    from src.bench.ceilings import measure_ceilings
    from src.bench.phases import feature_phases
    from src.runtime.device import setup_device

    setup_device(config)
    return {"ceilings": measure_ceilings(sizes.repeats), "phases": times(feature_phases(config, sizes), sizes.repeats)}


def pixels(config: Config, sizes: Sizes) -> dict[str, Any]:
    """The phases that run the encoder, and the floors of all."""
    import mindspore as ms

    from src.bench.floors import floors
    from src.bench.phases import pixel_phases
    from src.models.encoders.build import build_encoder
    from src.runtime.device import setup_device

    setup_device(config)
    result = {"phases": times(pixel_phases(config, sizes), sizes.repeats)}
    ms.set_context(mode=ms.PYNATIVE_MODE)  # floors are counted where Python runs the encoder
    kind, variant, size = config.encoder.kind, config.encoder.variant, config.data.image_size
    return result | {
        "floors": floors(config, sizes, build_encoder(kind, variant=variant, checkpoint=None, image_size=size))
    }


def host(config: Config, sizes: Sizes) -> dict[str, Any]:
    """Reward and evaluation metrics."""
    from src.bench.host import CAPTION_WORDS, CAPTIONS_PER_IMAGE, GROUP, host_phases

    words = sizes.rewarded * CAPTION_WORDS
    postings = sizes.rewarded / GROUP * CAPTIONS_PER_IMAGE * 4 * CAPTION_WORDS  # n-grams of n = 1 to 4
    floor = Work(0.0, 8 * words + 12 * postings)
    return {"phases": times(host_phases(sizes), sizes.repeats), "floors": {"reward": floor}}


def compilation(config: Config, sizes: Sizes) -> dict[str, Any]:
    """compile_s: compiling sampler and update in this environment, without what else a first call does."""
    from mindspore import nn

    from src.bench.phases import feature_phases
    from src.runtime.device import setup_device

    setup_device(config)
    compile_cell, seconds = nn.Cell.compile, []

    def compile_timed(cell: nn.Cell, *inputs: Any, **options: Any) -> None:
        started = time.perf_counter()
        compile_cell(cell, *inputs, **options)
        seconds.append(time.perf_counter() - started)

    with patch.object(nn.Cell, "compile", compile_timed):
        for phase in feature_phases(config, sizes):
            if phase.name in ("sample", "update_features"):
                phase.call()
    return {"compile_s": sum(seconds)}


def times(phases: Iterable, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds, captions/s and compile seconds of each phase."""
    result = {}
    for phase in phases:
        timing = timed(phase.call, repeats)
        result[phase.name] = timing._asdict() | {"captions_per_s": phase.captions / timing.seconds}
    return result


if __name__ == "__main__":
    run_program(main)
