"""The CapRL reward (arXiv:2509.22647): a caption is worth what can be answered from it without seeing the image.

    R(caption) = mean over N presentations of [the answering model chose the right option]

Each presentation is a question of the caption's image, drawn with replacement, with its options in an order of its own
and CANNOT as the last. A presentation that got no answer is left out of the mean.
"""

from collections.abc import Sequence

import numpy as np

from src.config import Config
from src.data.questions import Answerer, Presentation, Question, load_questions, present, questions_file
from src.errors import InputError
from src.rewards.completions import Completions
from src.rng import generator

CACHE_SIZE = 200_000  # answers kept: about 100 MB


class CapRL:
    """questions: of each training image, at least one; presentations: N. seed, rollout and row key the draws.

    failures: float32 [2], how many presentations of the last call got no answer, and how many there were.
    """

    def __init__(
        self, questions: Sequence[Sequence[Question]], answerer: Answerer, *, presentations: int, seed: int
    ) -> None:
        self.questions = questions
        self.answerer = answerer
        self.presentations = presentations
        self.seed = seed
        self.failures = np.zeros(2, np.float32)
        self._cache: dict[Presentation, int] = {}

    def __call__(self, completions: Completions) -> np.ndarray:
        """Rewards float64 [M], 0 to 1; NaN where no presentation of a caption got an answer."""
        drawn = [
            pair
            for row, image, caption in zip(completions.rows, completions.image_rows, completions.captions)
            for pair in self._draw(completions.rollout, int(row), self.questions[image], caption)
        ]
        answers = self._answer([presentation for presentation, _ in drawn])
        right = [np.nan if answer is None else float(answer == truth) for answer, (_, truth) in zip(answers, drawn)]
        right = np.array(right).reshape(-1, self.presentations)  # [M, N]
        answered = ~np.isnan(right)
        self.failures = np.array([(~answered).sum(), answered.size], np.float32)
        count = answered.sum(1)
        return np.divide(np.nansum(right, 1), count, out=np.full(len(right), np.nan), where=count > 0)

    def _draw(
        self, rollout: int, row: int, questions: Sequence[Question], caption: str
    ) -> list[tuple[Presentation, int]]:
        """N presentations, each with the index of its right option."""
        rng = generator("presentations", self.seed, rollout, row)
        chosen = [questions[place] for place in rng.integers(len(questions), size=self.presentations)]
        return [present(question, caption, rng.permutation(len(question.options))) for question in chosen]

    def _answer(self, presentations: list[Presentation]) -> list[int | None]:
        """Answers in order; each different presentation is asked once, and again only where it got no answer."""
        unknown = list(dict.fromkeys(p for p in presentations if p not in self._cache))
        new = dict(zip(unknown, self.answerer.answer(unknown), strict=True)) if unknown else {}
        answers = [self._cache.get(p, new.get(p)) for p in presentations]
        self._cache |= {p: answer for p, answer in new.items() if answer is not None}
        for oldest in list(self._cache)[: max(0, len(self._cache) - CACHE_SIZE)]:
            del self._cache[oldest]
        return answers


def build_caprl(config: Config, image_ids: Sequence[int], answerer: Answerer) -> CapRL:
    """The reward for training images, as `caprl` says. Errors: InputError naming the file or the image."""
    path = questions_file(config, "train")
    questions = load_questions(path)
    without = [image_id for image_id in image_ids if image_id not in questions]
    if without:
        raise InputError(
            f"{path}: {len(without)} of {len(image_ids)} training images have no question, image_id {without[0]} the "
            "first: add some, or leave these images out (data.lists)"
        )
    return CapRL(
        [questions[image_id] for image_id in image_ids],
        answerer,
        presentations=config.caprl.presentations,
        seed=config.seed,
    )
