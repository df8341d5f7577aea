"""Run by msrun in test_workers.py: what crosses between workers. The first prints one JSON line."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.runtime.environment import prepare_environment, run_program


def main() -> None:
    """Every collective once, on two workers."""
    prepare_environment(convolutions=True)
    from src.config.load import load_config
    from src.runtime.workers import join_workers

    workers = join_workers(load_config("configs/demo/grpo.yaml", ["device=CPU"]))

    import numpy as np
    from mindspore import Parameter, Tensor

    rank = workers.rank
    batches = np.arange(8).reshape(2, 4)
    shares = [workers.share(batch) for batch in batches]
    rows = np.concatenate([np.stack([share, 10 * share], 1) for share in shares]).astype(np.int32)
    rewards = np.array([[0.5], [np.nan if rank else rank + 1.5]], np.float32)  # one a batch; NaN: nobody could give it
    gathered = workers.gather([rows, rewards], len(batches))
    floats = Parameter(Tensor(np.array([0.1 + rank, -0.0], np.float32)), name="floats")
    count = Parameter(Tensor(np.array([30_000 + rank], np.int32)), name="count")
    workers.broadcast([floats, count])
    file = Path(sys.argv[1])
    with workers.first_alone():
        seen = file.exists()
        file.touch()
    results = {
        "size": workers.size,
        "sum": workers.sum(np.array([rank + 0.5])).tolist(),
        "gathered": [str(gathered[0].dtype), gathered[0].tolist(), str(gathered[1].tolist())],
        "floats": floats.asnumpy().tolist(),
        "minus": np.signbit(floats.asnumpy()).tolist(),
        "count": count.asnumpy().tolist(),
        "any": [workers.any(rank == 1), workers.any(False)],
        "seen": workers.sum(np.array([seen])).tolist(),  # by the second alone
    }
    if workers.is_first:
        print(json.dumps(results))


if __name__ == "__main__":
    run_program(main)
