"""Counter-based random numbers on the host: every draw is a pure function of (seed, purpose, step, row).

Rollouts are repeatable, resuming is exact, any worker can draw any row, and the device runs no random operator.
"""

import hashlib

import numpy as np

# One stream per purpose, so that two uses of one seed never share numbers.
STREAMS = {"data": 1, "captions": 2, "dropout": 3, "sample": 4, "minibatch": 5}
STREAMS |= {"questions": 6, "presentations": 8, "prism": 9}
_WORD = 1 << 64


def generator(stream: str, seed: int, *counters: int) -> np.random.Generator:
    """Return a NumPy generator keyed by its arguments (at most three counters)."""
    return np.random.Generator(_bits(stream, seed, 0, *counters))


def counter_of(name: int | str) -> int:
    """Return the counter for a name, 0 to 2^64 - 1: a number stands for itself, a text for its digest."""
    if isinstance(name, int) and 0 <= name < _WORD:
        return name
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big")


def uniforms(seed: int, step: int, first_row: int, rows: int, columns: int) -> np.ndarray:
    """Return sampling uniforms, float32 [rows, columns], multiples of 2^-24 in [0, 1 - 2^-24].

    Row r of the result belongs to global row first_row + r, however the rows are divided into calls.
    """
    blocks = -(-columns // 4)  # one Philox block is four 64-bit words; a row starts at a block
    raw = _bits("sample", seed, first_row * blocks, step).random_raw(rows * blocks * 4)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(rows, -1)[:, :columns]


def keep_masks(
    seed: int, step: int, first_row: int, rows: int, shape: tuple[int, ...], rate: float | np.ndarray
) -> np.ndarray:
    """Return dropout masks, bool [rows, *shape], True where a value is kept (probability 1 - rate, to within 2^-16).

    rate: below 1, for all or in a shape that broadcasts to `shape`.
    """
    words = int(np.prod(shape))
    blocks = -(-words // 16)  # 16 draws of 16 bits per block
    raw = _bits("dropout", seed, first_row * blocks, step).random_raw(rows * blocks * 4)
    draws = raw.view(np.uint16).reshape(rows, -1)[:, :words]
    return draws.reshape(rows, *shape) >= np.round(np.multiply(rate, 65536)).astype(np.uint16)


def _bits(stream: str, seed: int, block: int, *counters: int) -> np.random.Philox:
    # Philox has a 128-bit key (seed, stream) and a 256-bit counter, whose lowest word counts blocks.
    words = [block, *counters, *[0] * (3 - len(counters))]
    return np.random.Philox(
        key=seed % _WORD + (STREAMS[stream] << 64), counter=sum(w << (64 * i) for i, w in enumerate(words))
    )
