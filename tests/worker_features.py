"""Run by msrun in test_workers.py: all workers fill the feature caches of two splits, in batches of 8.

worker_features.py DATA OUTPUTS [KILL]: the last worker is killed in its KILL-th call of the encoder. Each worker leaves
the number of its calls in OUTPUTS/calls_<rank>.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.runtime.environment import prepare_environment, run_program


def main() -> None:
    """Fill the caches of train and val."""
    prepare_environment(convolutions=True)
    from tiny import TINY

    from src.config.load import load_config
    from src.runtime.workers import join_workers

    data, outputs, *kill = sys.argv[1:]
    settings = [*TINY, "eval.batch_images=8", f"data.root={data}", f"output_root={outputs}"]
    config = load_config("configs/demo/grpo.yaml", settings)
    workers = join_workers(config)

    from src.data.dataset import load_dataset
    from src.data.feature_cache import FeatureCache
    from src.models.encoders.build import build_encoder
    from src.runtime.device import setup_device
    from src.training.sources import build_sources

    setup_device(config)
    calls = 0
    fill = FeatureCache.fill

    def counted_fill(cache, images, encode, rank, size):
        def counted(pixels):
            nonlocal calls
            calls += 1
            if kill and rank == size - 1 and calls == int(kill[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(pixels)

        fill(cache, images, counted, rank, size)

    FeatureCache.fill = counted_fill
    with workers.first_alone():
        records = load_dataset(config).records
    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=64).set_train(False)
    train, val = build_sources(config, records, ("train", "val"), encoder, workers)
    assert (train.shape[0], val.shape[0]) == (64, 16)
    Path(outputs, f"calls_{workers.rank}").write_text(str(calls))
    workers.wait()


if __name__ == "__main__":
    run_program(main)
