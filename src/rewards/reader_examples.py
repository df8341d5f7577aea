"""What the reader learns from: captions of scenes of its own, questions, and what should be answered from the caption.

Beside the captions that people write there are damaged ones, as a policy writes them, and junk that a policy may try
on a reader: a few words repeated, lists of all colours or shapes, praise of itself. Junk answers nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.data.questions import CANNOT, Presentation, Question, words_of
from src.demo.captions import write_captions
from src.demo.questions import Asked, askable, choose_questions, write_question
from src.demo.reading import LEXICON, Reading, read_caption
from src.demo.scenes import describe_scene
from src.runtime.rng import generator

SIZE = 96  # pixels of the scenes, which are not drawn
JUNK, DAMAGED = 0.1, 0.15  # shares of the captions
_RELATIONS = 3  # questions of a group that come before all others
_PHRASES = list(LEXICON)
_LISTED = ("colour", "shape", "size", "texture", "relation", "number", "background", "spot")
_LISTS = [[phrase for phrase in _PHRASES if LEXICON[phrase][0] == kind] for kind in _LISTED]
_COMMON = ("this", "is", "a", "the", "of", "and", "in", "picture")

Asking = tuple[Asked, Question]


@dataclass(frozen=True)
class Example:
    """A question on a caption, and the option that should be chosen from the caption alone: `target`, or CANNOT."""

    caption: str
    question: Question
    target: str

    @property
    def presentation(self) -> Presentation:
        """The question with its options as they stand."""
        return Presentation(self.caption, self.question.question, (*self.question.options, CANNOT))


def draw_scene_of(seed: int, split_index: int, index: int) -> tuple[dict, np.random.Generator]:
    """A scene that is in no split of the demo data, and the generator for what is said and asked of it."""
    rng = generator("reader", seed, split_index, index)
    return describe_scene(rng, SIZE), rng


def held_out_examples(seed: int, split_index: int, scenes: int) -> Iterator[Example]:
    """The demo's questions on five captions of each of `scenes` scenes, which no reader of another split has seen."""
    for index in range(scenes):
        scene, rng = draw_scene_of(seed, split_index, index)
        asking = [(item.asked, write_question(item, index, rng)) for item in choose_questions(scene, rng)]
        for caption in write_captions(scene, rng):
            reading = read_caption(caption)
            yield from (_example(caption, reading, pair) for pair in asking)


def training_groups(seed: int, split_index: int, scenes: int, size: int) -> Iterator[list[Example]]:
    """`size` questions on each of five to seven captions of each scene; the caption answers half, if so many.

    Some questions are about another scene: a wrong caption does not tell what is asked.
    """
    before: list[Asking] = []
    for index in range(scenes):
        scene, rng = draw_scene_of(seed, split_index, index)
        asking = [(item.asked, write_question(item, index, rng)) for item in askable(scene)]
        # People seldom say where things are; to learn it takes some more who do.
        more = [caption for caption in write_captions(scene, rng, 10) if _tells_where(caption)]
        for caption in write_captions(scene, rng) + more[:2]:
            caption, reading = _disturb(caption, rng)
            foreign = [before[place] for place in rng.permutation(len(before))[: size // 2]]
            examples = [_example(caption, reading, pair) for pair in asking + foreign]
            examples = [examples[place] for place in rng.permutation(len(examples))]
            answered = _mixed([example for example in examples if example.target != CANNOT])
            others = _mixed([example for example in examples if example.target == CANNOT])
            group = [*answered[: max(size // 2, size - len(others))], *others]
            yield (group * size)[:size]
        before = asking


def _tells_where(caption: str) -> bool:
    reading = read_caption(caption)
    return bool(reading.relations) or "spot" in reading.places


def _example(caption: str, reading: Reading, asking: Asking) -> Example:
    asked, question = asking
    answer = reading.answer(asked)
    return Example(caption, question, answer if answer in question.options else CANNOT)


def _mixed(examples: list[Example]) -> list[Example]:
    """Some about relations first, which captions seldom tell and which are hard to learn, then one of every type."""
    relations = [example for example in examples if example.question.type == "relation"]
    first = {example.question.type: example for example in reversed(examples)}
    chosen = [*relations[:_RELATIONS], *(first[name] for name in first if name != "relation")]
    return [*chosen, *(example for example in examples if example not in chosen)]


# ---- captions that nobody would write ----


def _disturb(caption: str, rng: np.random.Generator) -> tuple[str, Reading]:
    """A caption, sometimes damaged or replaced by junk, and what it says."""
    lot = rng.random()
    if lot < JUNK:
        return junk(rng), Reading()
    if lot < JUNK + DAMAGED:
        caption = _damage(words_of(caption), rng)
    return caption, read_caption(caption)


def junk(rng: np.random.Generator) -> str:
    """A text that describes nothing: repeated words, lists of words of a kind, or words that no caption has."""
    length = int(rng.integers(3, 21))
    kind = rng.integers(3)
    if kind == 0:
        return " ".join(rng.choice(rng.choice(_PHRASES, int(rng.integers(1, 4))), length))
    if kind == 1:
        chosen = [_LISTS[place] for place in rng.permutation(len(_LISTS))[: rng.integers(1, 4)]]
        return " ".join(phrase for phrases in chosen for phrase in rng.permutation(phrases)[:length])
    unknown = ["".join(rng.choice(list("bcdfghjklm"), 6)) for _ in range(length)]
    return " ".join(word if rng.random() < 0.5 else str(rng.choice(_COMMON)) for word in unknown)


def _damage(words: list[str], rng: np.random.Generator) -> str:
    """One to three of the things that a policy does: a word left out, doubled or too many, an end cut off."""
    for _ in range(int(rng.integers(1, 4))):
        place, kind = int(rng.integers(len(words))), rng.integers(4)
        if kind == 0 and len(words) > 1:
            words.pop(place)
        elif kind == 1:
            words.insert(place, words[place])
        elif kind == 2:
            words.insert(place, str(rng.choice(_PHRASES)))
        elif kind == 3:
            words = words[: max(2, place)]
    return " ".join(words)
