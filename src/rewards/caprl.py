"""The CapRL reward (arXiv:2509.22647): how well questions are answered from a caption, without seeing the image.

    R(caption) = mean over N presentations of [the answering model chose the right option]

Each presentation is a question about the caption's image, drawn with replacement, with its options shuffled and CANNOT
as the last. The mean excludes presentations that got no answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.config.schema import Config
from src.data.questions import Answerer, Presentation, Question, load_questions, present, questions_file
from src.data.record import ImageId, with_known_ids
from src.rewards.completions import Completions
from src.runtime.errors import InputError
from src.runtime.rng import generator

CACHE_SIZE = 200_000  # answers kept: about 100 MB


@dataclass
class CapRL:
    """questions: of each training image; presentations: N. Seed, rollout and row key the draws.

    failures: float32 [2], the presentations of the last call that got no answer, and all of them.
    """

    questions: Sequence[Sequence[Question]]
    answerer: Answerer
    presentations: int
    seed: int
    failures: np.ndarray = field(default_factory=lambda: np.zeros(2, np.float32))
    _cache: dict[Presentation, int] = field(default_factory=dict)

    def __call__(self, completions: Completions) -> np.ndarray:
        """Rewards float64 [M], 0 to 1; NaN if no presentation got an answer, or the image has no question."""
        drawn = [
            self._draw(completions.rollout, int(row), self.questions[image], caption)
            for row, image, caption in zip(completions.rows, completions.image_rows, completions.captions)
        ]
        answers = self._answer([presentation for pairs in drawn for presentation, _ in pairs])
        self.failures = np.array([answers.count(None), len(answers)], np.float32)
        given = iter(answers)
        right = [[answer == truth for _, truth in pairs if (answer := next(given)) is not None] for pairs in drawn]
        return np.array([np.mean(each) if each else np.nan for each in right], np.float64)

    def _draw(
        self, rollout: int, row: int, questions: Sequence[Question], caption: str
    ) -> list[tuple[Presentation, int]]:
        """N presentations, each with the index of its right option; none without questions."""
        if not questions:
            return []
        rng = generator("presentations", self.seed, rollout, row)
        chosen = [questions[place] for place in rng.integers(len(questions), size=self.presentations)]
        return [present(question, caption, rng.permutation(len(question.options))) for question in chosen]

    def _answer(self, presentations: list[Presentation]) -> list[int | None]:
        """Answers in order; each distinct presentation is sent once, and retried only if unanswered."""
        unknown = list(dict.fromkeys(p for p in presentations if p not in self._cache))
        new = dict(zip(unknown, self.answerer.answer(unknown), strict=True)) if unknown else {}
        answers = [self._cache.get(p, new.get(p)) for p in presentations]
        self._cache |= {p: answer for p, answer in new.items() if answer is not None}
        for oldest in list(self._cache)[:-CACHE_SIZE]:
            del self._cache[oldest]
        return answers


def build_caprl(config: Config, image_ids: Sequence[ImageId], answerer: Callable[[], Answerer]) -> CapRL:
    """The reward for training images.

    answerer: builds the answering model, which may take minutes, so it is called after the questions are read.
    Errors: InputError naming the file, or from the answering model.
    """
    path = questions_file(config, "train")
    of_image = with_known_ids(load_questions(path), image_ids, path)
    questions = [of_image.get(image_id, []) for image_id in image_ids]
    if not any(questions):
        raise InputError(f"{path}: no question is about a training image; use the image ids of the annotations")
    if without := questions.count([]):
        print(f"caprl: {without:,} of {len(questions):,} training images have no question, so they get no caprl reward")
    return CapRL(questions, answerer(), config.caprl.presentations, config.seed)
