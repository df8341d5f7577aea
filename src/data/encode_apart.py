"""The feature cache filled by a process of its own.

On CPUs with AVX-512, oneDNN's convolutions want AVX2 (src.environment), but its matrix products are 1.5 times as fast
with AVX-512, and a process has one of the two: training on features takes AVX-512, and this process the convolutions.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from typing import Any

import numpy as np

from src.config import Config
from src.data.feature_cache import FeatureCache
from src.environment import end_with_parent, leave_workers, prepare_environment, run_program
from src.errors import RunStopped, Terminated


def encode_apart(config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], rank: int, size: int) -> None:
    """Compute the share of worker `rank` of `size` of a feature cache, for an encoder with these parameters.

    Ends the program as the other process ended, which prints the reason; RunStopped where it was killed. Where this
    process is ended, so is the other, and what it has computed is kept.
    """
    arguments = (os.getpid(), config, cache, weights, rank, size)
    process = get_context("spawn").Process(target=_run, args=arguments)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process to pass on
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    try:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join(20)  # a batch of images may take seconds
            process.kill()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        raise RunStopped(f"the process that computes features was ended by {name}; the same command goes on")
    if process.exitcode > 0:
        sys.exit(process.exitcode)


def _run(parent: int, *arguments: Any) -> None:
    leave_workers()
    os.setpgid(0, 0)  # out of reach of the terminal's Ctrl-C, for which MindData has a handler that ends the process
    end_with_parent()

    def main() -> None:
        if os.getppid() == parent:  # else it ended before the line above
            with contextlib.suppress(Terminated):  # the parent says why
                _encode(*arguments)

    run_program(main)


def _encode(config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], rank: int, size: int) -> None:
    prepare_environment(convolutions=True)
    from mindspore import Tensor

    from src.data.dataset import encode_here
    from src.device import setup_device
    from src.models.encoder import build_encoder

    setup_device(config)
    encoder = build_encoder(
        config.encoder.kind, variant=config.encoder.variant, checkpoint=None, image_size=config.data.image_size
    )
    for name, parameter in encoder.parameters_and_names():
        parameter.set_data(Tensor(weights[name]))
    encode_here(config, cache, encoder.set_train(False), rank, size)
