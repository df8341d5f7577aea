"""Exact reading of the demo's captions: what a caption says, and which answer to a question follows from it.

It answers as somebody would who knows the words of the captions (src/demo/words.py) but does not see the scene:

- A word means the idea for which three of four people use it: "circle" is a circle, though some call rings so too;
  "patterned", "next to" and "round shape" say nothing. A mistyped word says nothing.
- A thing is known by what is said of it: of "a red circle and a star" the colour of the star cannot be told. Where the
  caption names one thing only, a question is about that unless the caption says otherwise: "a red shape" tells the
  colour of the star.
- Statements that contradict each other, such as two colours of one circle, say nothing.
- The number of things is the one that is stated, else that of the things named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from src.data.questions import Presentation, words_of
from src.demo.questions import DIRECTIONS, NUMBERS, Asked, Referent, asked_by_text
from src.demo.scenes import BACKGROUNDS, COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZES, TEXTURES
from src.demo.words import GROUNDS, SCENERY, TEXTURE_ENDINGS, WORDS, plural_of
from src.runtime.errors import InputError

_AGREEMENT = 0.75  # share of the uses of a word that must be of one idea
_IDEAS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES, "relation": RELATIONS}
_PLACES = {
    "grass": ("grass", "grassy", "lawn", "green background"),
    "sky": ("sky", "blue sky", "clouds", "blue background"),
    "sand": ("sand", "sandy", "beach"),
    "wood": ("wooden", "table"),
    "night": ("night", "night sky", "space", "dark background", "black background"),
    "noise": ("grainy", "noisy", "carpet"),
}
_SPOTS = {
    **{f"{down} {across}": f"{down} {across}" for down in ("top", "bottom") for across in ("left", "right")},
    "left side": "left", "right side": "right", "at the top": "top", "at the bottom": "bottom",
}  # fmt: skip
Meaning = tuple[str, str | None]  # what kind of word it is, and its idea: None where people disagree


@dataclass
class Thing:
    """What a caption says of one thing, or of several alike: every idea for each attribute, `number` among them."""

    ideas: dict[str, set[str | None]] = field(default_factory=dict)

    def get(self, attribute: str) -> str | None:
        """The value of an attribute; None where nothing or several things are said."""
        ideas = self.ideas.get(attribute, set())
        return next(iter(ideas)) if len(ideas) == 1 else None


@dataclass
class Reading:
    """What a caption says: things in order, relations between two of them, and places."""

    things: list[Thing] = field(default_factory=list)
    relations: list[tuple[Thing, str | None, Thing]] = field(default_factory=list)
    places: dict[str, set[str | None]] = field(default_factory=dict)  # background, background colour, spot

    def answer(self, asked: Asked) -> str | None:
        """The answer that follows from the caption, of any options; None where none does."""
        if asked.type == "count":
            return self._count()
        if asked.about is None or asked.type in ("corner", "side"):
            return _only(self.places.get(asked.type if asked.about is None else "spot", set()))
        if asked.other is not None:
            return _only(self._directions(asked.about, asked.other))
        return _only({thing.get(asked.type) for thing in self._about(asked.about)})

    def _about(self, referent: Referent) -> list[Thing]:
        things = [thing for thing in self.things if thing.get(referent.attribute) == referent.value]
        alone = len(self.things) == 1 and self.things[0].get(referent.attribute) is None
        return things or (self.things if alone else [])

    def _count(self) -> str | None:
        stated = [thing for thing in self.things if thing.get("number") != "one" and thing.get("shape") is None]
        numbers = [thing.get("number") for thing in stated or self.things]
        total = 0 if None in numbers else sum(map(NUMBERS.index, numbers))
        return NUMBERS[total] if 0 < total < len(NUMBERS) else None

    def _directions(self, about: Referent, other: Referent) -> set[str | None]:
        found: set[str | None] = set()
        for first, relation, second in self.relations:
            opposite = relation and OPPOSITE.get(relation)
            for subject, where, base in ((first, relation, second), (second, opposite, first)):
                if subject.get(about.attribute) == about.value and base.get(other.attribute) == other.value:
                    found.add(where and DIRECTIONS.get(where))
        return found


class SceneReader:
    """Answers the demo's questions from captions: an answering model (src/data/questions.py) that needs no training."""

    def answer(self, presentations: Sequence[Presentation]) -> list[int]:
        """The index of the option that follows from each caption, or that of CANNOT, the last.

        Errors: InputError for a question that is not in the demo's words.
        """
        readings = {caption: read_caption(caption) for caption in {item.caption for item in presentations}}
        answers = [readings[item.caption].answer(_asked(item.question)) for item in presentations]
        return [
            item.options.index(answer) if answer in item.options else len(item.options) - 1
            for item, answer in zip(presentations, answers)
        ]


@cache
def _asked(question: str) -> Asked:
    asked = asked_by_text().get(" ".join(words_of(question)))
    if asked is None:
        raise InputError(
            f"caprl.answerer=reader cannot answer {question!r}: it knows the demo's questions only; set "
            "caprl.answerer=server"
        )
    return asked


def read_caption(caption: str) -> Reading:
    """What a caption says; words out of order say little."""
    reading = Reading()
    thing, last, relation = Thing(), None, None  # under way; the last one named; (subject, relation) that waits

    def close(shape_is_named: bool, names_several: bool = False) -> None:
        """End the thing under way. One whose noun was mistyped counts, "a red cirlce"; one without a noun does not."""
        nonlocal thing, last, relation
        if shape_is_named or ("?" in thing.ideas and thing.ideas.keys() & {"colour", "size", "texture"}):
            thing.ideas.setdefault("number", {None} if names_several else {"one"})
            reading.things.append(thing)
            last = thing
            if relation is not None:
                reading.relations.append((*relation, thing))
                relation = None
        thing = Thing()

    for kind, idea in _meanings(words_of(caption)):
        if kind in ("colour", "size", "texture", "?"):
            thing.ideas.setdefault(kind, set()).add(idea)
        elif kind in ("shape", "shapes"):
            thing.ideas.setdefault("shape", set()).add(idea)
            close(True, kind == "shapes")
        elif kind == "ending" and last is not None:
            last.ideas.setdefault("texture", set()).add(idea)
        elif kind == "number":
            if thing.ideas.keys() - {"number"}:
                close(False)
            thing.ideas.setdefault("number", set()).add(idea)
        elif kind in ("relation", "and", "article"):
            close(False)
            if kind != "article":  # "to the left of a star" goes on
                relation = (last, idea) if kind == "relation" and last is not None else None
        elif kind in ("background", "background colour", "spot"):
            close(False)
            reading.places.setdefault(kind, set()).add(idea)
    close(False)
    return reading


def _meanings(words: list[str]) -> list[Meaning]:
    """What the words mean, the longest phrases first; words without a meaning of their own are left out."""
    meanings, start = [], 0
    while start < len(words):
        for length in range(_LONGEST, 0, -1):
            phrase = " ".join(words[start : start + length])
            if phrase in LEXICON:
                meanings.append(LEXICON[phrase])
                break
        else:  # length is 1
            if phrase not in _FILLERS:
                meanings.append(("?", None))
        start += length
    return meanings


def _lexicon() -> dict[str, Meaning]:
    lexicon: dict[str, Meaning] = {}
    for kind, ideas in _IDEAS.items():
        uses: dict[str, dict[str, float]] = {}
        for idea in ideas:
            for phrase, weight in WORDS.get(idea, {}).items():
                uses.setdefault(phrase, {})[idea] = weight
        for phrase, weights in uses.items():
            idea = max(weights, key=weights.__getitem__)
            meaning = idea if weights[idea] >= _AGREEMENT * sum(weights.values()) else None
            lexicon[phrase] = (kind, meaning)
            if kind == "shape":
                lexicon[plural_of(phrase)] = ("shapes", meaning)
    for phrase in WORDS["shapes"]:
        lexicon |= {phrase: ("shapes", None), phrase.removesuffix("s"): ("shape", None)}
    lexicon |= {phrase: ("ending", idea) for idea, phrase in TEXTURE_ENDINGS.items()}
    lexicon |= {word: ("number", word) for word in NUMBERS[1:]}
    lexicon |= dict.fromkeys(WORDS["several"], ("number", None))
    lexicon |= {"a": ("article", None), "an": ("article", None)}
    lexicon |= {"and": ("and", None), "between": ("relation", None)}
    for colour in BACKGROUNDS["plain"]:
        lexicon |= {f"{colour} {noun}": ("background colour", colour) for noun in ("background", "wall")}
    lexicon |= {phrase: ("background", kind) for kind, phrases in _PLACES.items() for phrase in phrases}
    return lexicon | {phrase: ("spot", spot) for phrase, spot in _SPOTS.items()}


def _fillers() -> set[str]:
    """All words of correct captions that have no meaning of their own."""
    phrases = [phrase for uses in (*WORDS.values(), *GROUNDS.values()) for phrase in uses]
    more = "there is are that the of in on at to with sitting floating lying corner side middle center brown"
    return {word for phrase in [*phrases, *SCENERY.values(), more] for word in words_of(phrase)}


def _only(values: set[str | None]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


LEXICON = _lexicon()
_LONGEST = max(phrase.count(" ") for phrase in LEXICON) + 1
_FILLERS = _fillers()
