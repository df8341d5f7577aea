"""Fill the feature cache in a separate process.

On CPUs with AVX-512, oneDNN's convolutions need AVX2 (src.runtime.environment), but its matrix products are 1.5 times
as fast with AVX-512, and a process has one of the two: training on features uses AVX-512, this process AVX2.
"""

import os
import signal
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

from src.config.schema import Config
from src.data.feature_cache import FeatureCache
from src.runtime.environment import end_with_parent, leave_workers, prepare_environment, run_program
from src.runtime.errors import ProgramError, RunStopped, Terminated


def encode_apart(config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], rank: int, size: int) -> None:
    """Compute the share of worker `rank` of `size` of a feature cache, for an encoder with these parameters.

    Raises what the other process raises, and RunStopped if it was killed, or failed with a traceback. If this process
    is ended, so is the other, and the computed features are kept.
    """
    context = get_context("spawn")
    answer, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, os.getpid(), config, cache, weights, rank, size))
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: only this process handles Ctrl-C
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
    if process.exitcode:
        how = "failed; see the error above or in the log"
        if process.exitcode < 0:
            how = f"was ended by {signal.Signals(-process.exitcode).name}; run the same command to resume"
        raise RunStopped(f"the process that computes features {how}")


def _run(
    answer: Connection, parent: int, config: Config, cache: FeatureCache, weights: Mapping[str, np.ndarray], *share: int
) -> None:
    leave_workers()
    os.setpgid(0, 0)  # keeps the terminal's Ctrl-C away, on which MindData would end the process
    end_with_parent()

    def main() -> None:
        if os.getppid() != parent:  # it ended before the line above
            return
        try:
            prepare_environment(convolutions=True)
            from mindspore import Tensor

            from src.models.build import build_vision
            from src.runtime.device import setup_device
            from src.training.sources import encode_here

            setup_device(config)
            encoder = build_vision(config)
            for name, parameter in encoder.parameters_and_names():
                parameter.set_data(Tensor(weights[name]))
            encode_here(config, cache, encoder.set_train(False), *share)
        except Terminated:
            pass  # the parent says why
        except (ProgramError, OSError) as error:
            answer.send(error)

    run_program(main)
