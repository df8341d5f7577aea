"""The feature cache filled by a process of its own.

On CPUs with AVX-512, oneDNN's convolutions want AVX2 (src.environment), but its matrix products are 1.5 times as fast
with AVX-512, and a process has one of the two: training on features takes AVX-512, and this process the convolutions.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from src.config import Config
from src.environment import prepare_environment
from src.errors import RunStopped


def encode_apart(config: Config, files: Sequence[Path], weights: Mapping[str, np.ndarray]) -> None:
    """Fill the feature cache of `files` for an encoder with these parameters. Errors: as build_feature_cache;
    RunStopped where the process is killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            pool.submit(_encode, config, files, weights).result()
        except BrokenProcessPool:
            raise RunStopped(
                f"the process that computes features was killed; the same command goes on in {config.cache_folder}"
            ) from None


def _encode(config: Config, files: Sequence[Path], weights: Mapping[str, np.ndarray]) -> None:
    prepare_environment(convolutions=True)
    from mindspore import Tensor

    from src.data.dataset import feature_source
    from src.device import setup_device
    from src.models.encoder import build_encoder

    setup_device(config)
    encoder = build_encoder(
        config.encoder.kind, variant=config.encoder.variant, checkpoint=None, image_size=config.data.image_size
    )
    for name, parameter in encoder.parameters_and_names():
        parameter.set_data(Tensor(weights[name]))
    feature_source(config, files, encoder.set_train(False))
