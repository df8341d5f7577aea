"""The feature cache filled by a process of its own.

On CPUs with AVX-512, oneDNN's convolutions need AVX2 (src.runtime.environment), but its matrix products are 1.5 times
as fast with AVX-512, and a process has one of the two: training on features uses AVX-512, this process AVX2.
"""

import os
import signal
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from src.config.schema import Config
from src.data.feature_cache import FeatureCache
from src.runtime.environment import end_with_parent, leave_workers, prepare_environment, run_program
from src.runtime.errors import ProgramError, RunStopped, Terminated


def encode_apart(config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], rank: int, size: int) -> None:
    """Compute the share of worker `rank` of `size` of a feature cache, for an encoder with these parameters.

    Raises what the other process raises; RunStopped where it was killed, or failed otherwise, with a traceback. Where
    this process is ended, so is the other, and what it has computed is kept.
    """
    context = get_context("spawn")
    answer, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, os.getpid(), config, cache, weights, rank, size))
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
    if answer.poll():
        raise answer.recv()
    status = process.exitcode
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        raise RunStopped(f"the process that computes features was ended by {name}; the same command goes on")
    if status != 0:
        raise RunStopped("the process that computes features failed, for a reason that stands above or in the log")


def _run(answer: Connection, parent: int, *arguments: Any) -> None:
    leave_workers()
    os.setpgid(0, 0)  # out of reach of the terminal's Ctrl-C, for which MindData has a handler that ends the process
    end_with_parent()

    def main() -> None:
        if os.getppid() == parent:  # else it ended before the line above
            try:
                _encode(*arguments)
            except Terminated:
                pass  # the parent says why
            except (ProgramError, OSError) as error:
                answer.send(error)

    run_program(main)


def _encode(config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], rank: int, size: int) -> None:
    prepare_environment(convolutions=True)
    from mindspore import Tensor

    from src.models.encoders.build import build_encoder
    from src.runtime.device import setup_device
    from src.training.features import encode_here

    setup_device(config)
    encoder = build_encoder(
        config.encoder.kind, variant=config.encoder.variant, checkpoint=None, image_size=config.data.image_size
    )
    for name, parameter in encoder.parameters_and_names():
        parameter.set_data(Tensor(weights[name]))
    encode_here(config, cache, encoder.set_train(False), rank, size)
