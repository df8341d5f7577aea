"""The rewards of a run: which are computed, with which weights, and how a report names them.

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

    ground_truths: tokenised captions of every training image, by its id; decode: the texts of ids and mask [M, T], and
    whether they ended; split: what makes words of a text; answerer: builds the answering model of caprl.
    Errors: InputError where caprl lacks questions or an answering model.
    """

    def __init__(
        self,
        config: Config,
        ground_truths: Mapping[ImageId, Sequence[str]],
        decode: Callable[[np.ndarray, np.ndarray], tuple[list[str], np.ndarray]],
        split: Callable[[str], list[str]],
        answerer: Callable[[], Answerer],
    ) -> None:
        truths = list(ground_truths.values())
        build: dict[str, Callable[[], Reward]] = {
            "cider": lambda: CiderReward(truths, config.cider),
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
        """Which of M completions ended, bool [M], and their rewards float32 [M, k], which is how they cross between
        workers; NaN is missing. rollout, rows, image_rows: as in Completions; ids, mask: [M, T]."""
        texts, ended = self._decode(ids, mask)
        completions = Completions(rollout, rows, image_rows, texts, ended, self._split)
        return ended, np.stack([reward(completions) for reward in self._rewards.values()], 1).astype(np.float32)

    @property
    def failures(self) -> np.ndarray | None:
        """float32 [2]: caprl's presentations of the last call that got no answer, and all; None without caprl."""
        caprl = self._rewards.get("caprl")
        return caprl.failures if isinstance(caprl, CapRL) else None


class CiderReward:
    """The CIDEr-D of completions. With `document_frequency: batch` (the original's defect) the frequencies come from
    the images of each call."""

    def __init__(self, ground_truths: Sequence[Sequence[str]], config: CiderConfig) -> None:
        self.ground_truths = ground_truths
        self.eos = config.eos
        self.scorer = CiderD(ground_truths, eos=config.eos) if config.document_frequency == "train" else None

    def __call__(self, completions: Completions) -> np.ndarray:
        """Rewards float64 [M]; a completion that was truncated gets no EOS token."""
        scorer, rows = self.scorer, completions.image_rows
        if scorer is None:
            images, rows = np.unique(rows, return_inverse=True)
            scorer = CiderD([self.ground_truths[image] for image in images], eos=self.eos)
        return scorer(rows, completions.words, completions.ended)


def reward_signature(config: Config) -> str:
    """How rewards and baseline are made, as SacreEOS writes it (Hu et al. 2023, arXiv:2305.12254).

    wInit: document frequencies from the training captions; nspi: samples per image; `group` is GRPO's baseline, and
    `average` the mean of the other samples. Where CIDEr-D is not the only reward, all stand with their weights in
    sum(...) or gdpo(...); one without settings by its name alone.
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
    reward = "+".join(f"{weight:g}*{parts.get(name, name)}" for name, weight in active.items())
    if active != {"cider": 1.0} or config.advantage.combine != "sum":
        reward = f"{config.advantage.combine}({reward})"
    else:
        reward = parts["cider"]
    base = {"group": "group", "leave_one_out": "average", "greedy": "greedy"}[config.advantage.baseline]
    signature = f"{reward}+{base}[nspi{config.rl.group_size}]"
    if "cider" not in active:
        return signature
    eos = "STANDARD" if cider.eos else "NO<EOS>"
    return f"{eos}_{'wInit' if cider.document_frequency == 'train' else 'w/oInit'}+{signature}"
