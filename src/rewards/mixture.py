"""Build the rewards of a run, weight them, and name them for reports.

Letters: M completions, k rewards.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from src.config.schema import CiderConfig, Config
from src.data.questions import Answerer
from src.data.record import ImageId
from src.rewards import length as shape
from src.rewards.caprl import CapRL, build_caprl
from src.rewards.cider import CiderD
from src.rewards.completions import Completions

Reward = Callable[[Completions], np.ndarray]  # float [M]


class Rewards:
    """The rewards whose weight is not 0. names: k of them; weights: float64 [k].

    ground_truths: tokenised captions of every training image, by its id; decode: returns the texts of ids and mask
    [M, T], and whether they ended; split: splits texts into words; answerer: builds the answering model of caprl.
    Errors: InputError if caprl lacks questions or an answering model.
    """

    def __init__(
        self,
        config: Config,
        ground_truths: Mapping[ImageId, Sequence[str]],
        decode: Callable[[np.ndarray, np.ndarray], tuple[list[str], np.ndarray]],
        split: Callable[[Sequence[str]], list[list[str]]],
        answerer: Callable[[], Answerer],
    ) -> None:
        truths = list(ground_truths.values())
        build: dict[str, Callable[[], Reward]] = {
            "cider": lambda: build_cider(truths, config.cider),
            "caprl": lambda: build_caprl(config, list(ground_truths), answerer),
            "length": lambda: partial(shape.length, config=config.length),
            "repetition": lambda: shape.repetition,
        }
        active = config.rewards.active
        self.names = tuple(active)
        self.weights = np.array(list(active.values()))
        self._rewards = {name: build[name]() for name in active}
        self._decode, self._split = decode, split

    def __call__(
        self, rollout: int, rows: np.ndarray, image_rows: np.ndarray, ids: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of M completions ended, bool [M], and their rewards float32 [M, k]; NaN is missing.

        rollout, rows, image_rows: as in Completions; ids, mask: [M, T].
        """
        texts, ended = self._decode(ids, mask)
        completions = Completions(rollout, rows, image_rows, texts, ended, self._split)
        return ended, np.stack([reward(completions) for reward in self._rewards.values()], 1).astype(np.float32)

    @property
    def failures(self) -> np.ndarray | None:
        """CapRL.failures; None without caprl."""
        caprl = self._rewards.get("caprl")
        return caprl.failures if isinstance(caprl, CapRL) else None


def build_cider(ground_truths: Sequence[Sequence[str]], config: CiderConfig) -> Reward:
    """The CIDEr-D of completions; a truncated completion gets no EOS token.

    With `document_frequency: batch` (the original's defect) the frequencies come from the images of each call.
    """
    if config.document_frequency == "train":
        scorer = CiderD(ground_truths, eos=config.eos)
        return lambda given: scorer(given.image_rows, given.words, given.ended)

    def of_batch(given: Completions) -> np.ndarray:
        images, rows = np.unique(given.image_rows, return_inverse=True)
        return CiderD([ground_truths[image] for image in images], eos=config.eos)(rows, given.words, given.ended)

    return of_batch


def reward_signature(config: Config) -> str:
    """Rewards and baseline in the notation of SacreEOS (Hu et al. 2023, arXiv:2305.12254).

    wInit: document frequencies from the training captions; nspi: samples per image; `group` is GRPO's baseline, and
    `average` the mean of the other samples. If CIDEr-D is not the only reward, sum(...) or gdpo(...) lists all with
    their weights, and a reward without settings by its name alone.
    """
    cider, caprl, length = config.cider, config.caprl, config.length
    reader = "exact" if caprl.answerer == "reader" else f"{caprl.model}:{caprl.asked_for}"
    parts = {
        "cider": "Cider-D[n4,s6.0]",
        "caprl": f"CapRL[n{caprl.presentations},{reader}]",
        "length": f"length[{length.least}-{length.most},{length.margin}]",
        "repetition": "repetition[n3]",
    }
    active = config.rewards.active
    reward = parts["cider"]
    if active != {"cider": 1.0} or config.advantage.combine != "sum":
        weighted = "+".join(f"{weight:g}*{parts.get(name, name)}" for name, weight in active.items())
        reward = f"{config.advantage.combine}({weighted})"
    base = {"group": "group", "leave_one_out": "average", "greedy": "greedy"}[config.advantage.baseline]
    eos = "STANDARD" if cider.eos else "NO<EOS>"
    words = f"{eos}_{'wInit' if cider.document_frequency == 'train' else 'w/oInit'}+" if "cider" in active else ""
    return f"{words}{reward}+{base}[nspi{config.rl.group_size}]"
