"""From sampled ids to rewards: decodes completions and scores them by CIDEr-D against their images' ground truths."""

from collections.abc import Sequence

import numpy as np

from src.config import Config, RewardConfig
from src.data.tokenizer import Tokenizer
from src.rewards.cider import CiderD


class CaptionReward:
    """The CIDEr-D reward of completions on training images.

    ground_truths: PTB-tokenised captions of every training image. With `document_frequency: batch` (the original's
    defect) the frequencies come from the images of each call.
    """

    def __init__(self, ground_truths: Sequence[Sequence[str]], tokenizer: Tokenizer, config: RewardConfig) -> None:
        self.ground_truths = ground_truths
        self.tokenizer = tokenizer
        self.eos = config.eos
        self.scorer = CiderD(ground_truths, eos=config.eos) if config.document_frequency == "train" else None

    def __call__(self, image_rows: np.ndarray, completion_ids: np.ndarray, completion_mask: np.ndarray) -> np.ndarray:
        """Rewards float32 [M] of completions int32 [M, T] on training images image_rows [M] (rows, not image ids).

        A completion whose mask ends without an EOS is truncated and gets no EOS token.
        """
        words = [self.tokenizer.decode(row).split() for row in completion_ids]
        ended = ((completion_ids == self.tokenizer.eos_id) & (completion_mask > 0)).any(1)
        scorer, rows = self.scorer, image_rows
        if scorer is None:
            images, rows = np.unique(image_rows, return_inverse=True)
            scorer = CiderD([self.ground_truths[image] for image in images], eos=self.eos)
        return scorer(rows, words, ended).astype(np.float32)  # float32 crosses between workers


def reward_signature(config: Config) -> str:
    """How rewards and baseline are made, as SacreEOS writes it (Hu et al. 2023, arXiv:2305.12254).

    wInit: document frequencies from the training captions; nspi: samples per image; `group` is GRPO's baseline, and
    `average` the mean of the other samples.
    """
    eos = "STANDARD" if config.reward.eos else "NO<EOS>"
    init = "wInit" if config.reward.document_frequency == "train" else "w/oInit"
    base = {"group": "group", "leave_one_out": "average", "greedy": "greedy"}[config.advantage.baseline]
    return f"{eos}_{init}+Cider-D[n4,s6.0]+{base}[nspi{config.grpo.group_size}]"
