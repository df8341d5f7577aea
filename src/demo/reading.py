"""Exact reading of the demo's captions: what a caption says, and which answer to a question follows from it.

It answers like a person who knows the words of the captions (src/demo/phrases.py) but does not see the scene:

- A word means the idea for which three of four people use it: "circle" is a circle, though some call rings so too;
  "patterned", "next to" and "round shape" say nothing. A mistyped word says nothing.
- A thing is known by what is said of it: "a red circle and a star" does not tell the colour of the star. If the caption
  names only one thing, a question is about that unless the caption says otherwise: "a red shape" tells the colour of
  the star.
- Statements that contradict each other, such as two colours of one circle, say nothing.
- The number of things is the stated one, else that of the things named.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from src.data.questions import Presentation, words_of
from src.demo.phrases import GROUNDS, NUMBERS, SCENERY, TEXTURE_ENDINGS, WORDS, plural_of
from src.demo.scene_questions import DIRECTIONS, Asked, Referent, asked_by_text
from src.demo.scenes import BACKGROUNDS, COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZES, TEXTURES
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
_Meaning = tuple[str, str | None]  # what kind of word it is, and its idea: None if people disagree
# What a caption says of a thing, of several alike or of the scene: every idea for each attribute, `number` among them.
_Ideas = defaultdict[str, set[str | None]]


def _only(ideas: _Ideas, attribute: str) -> str | None:
    """Return the value of an attribute; None if nothing or several things are said."""
    return next(iter(ideas[attribute])) if len(ideas.get(attribute, ())) == 1 else None


@dataclass
class _Reading:
    """The statements of a caption: things in order, relations between two of them, and places."""

    things: list[_Ideas] = field(default_factory=list)
    relations: list[tuple[_Ideas, str | None, _Ideas]] = field(default_factory=list)
    places: _Ideas = field(default_factory=lambda: defaultdict(set))  # background, background colour, spot

    def answer(self, asked: Asked) -> str | None:
        """Return the answer that follows from the caption, of any options; None if none does."""
        if asked.type == "count":
            return self._count()
        if asked.about is None or asked.type in ("corner", "side"):
            return _only(self.places, asked.type if asked.about is None else "spot")
        found: _Ideas = defaultdict(set)
        if asked.other is None:
            things = [thing for thing in self.things if self._is(thing, asked.about)]
            if not things and len(self.things) == 1 and _only(self.things[0], asked.about.attribute) is None:
                things = self.things
            found[asked.type].update(_only(thing, asked.type) for thing in things)
        for first, relation, second in self.relations if asked.other else ():
            opposite = OPPOSITE.get(relation or "")
            for subject, where, base in ((first, relation, second), (second, opposite, first)):
                if self._is(subject, asked.about) and self._is(base, asked.other):
                    found[asked.type].add(DIRECTIONS.get(where or ""))
        return _only(found, asked.type)

    @staticmethod
    def _is(thing: _Ideas, referent: Referent | None) -> bool:
        return referent is not None and _only(thing, referent.attribute) == referent.value

    def _count(self) -> str | None:
        stated = [thing for thing in self.things if _only(thing, "number") != "one" and _only(thing, "shape") is None]
        numbers = [_only(thing, "number") for thing in stated or self.things]
        total = 0 if None in numbers else sum(map(NUMBERS.index, filter(None, numbers)))
        return NUMBERS[total] if 0 < total < len(NUMBERS) else None


class SceneReader:
    """Answers the demo's questions from captions: an answering model (src/data/questions.py) that needs no training."""

    def answer(self, presentations: Sequence[Presentation]) -> list[int]:
        """Return the index of the option that follows from each caption, or of CANNOT, the last."""
        readings = {caption: read_caption(caption) for caption in {item.caption for item in presentations}}
        answers = [readings[item.caption].answer(asked(item.question)) for item in presentations]
        return [
            item.options.index(answer) if answer in item.options else len(item.options) - 1
            for item, answer in zip(presentations, answers)
        ]


@cache
def asked(question: str, origin: str = "caprl.answerer=reader") -> Asked:
    """Return what a question asks for. Raises InputError that begins with `origin` if it is not one of the demo's."""
    meaning = asked_by_text().get(" ".join(words_of(question)))
    if meaning is None:
        fix = "the demo's reader knows only the demo's questions; set caprl.answerer=server"
        raise InputError(f"{origin}: {question!r} cannot be answered: {fix}")
    return meaning


def read_caption(caption: str) -> _Reading:
    """Read what a caption says; words out of order say little."""
    reading = _Reading()
    thing, last, relation = _Ideas(set), None, None  # being read; the last one named; (subject, relation) that waits

    def close(shape_is_named: bool, names_several: bool = False) -> None:
        """End the thing being read. It counts if its noun was mistyped, "a red cirlce", but not without a noun."""
        nonlocal thing, last, relation
        if shape_is_named or ("?" in thing and thing.keys() & {"colour", "size", "texture"}):
            thing.setdefault("number", {None} if names_several else {"one"})
            reading.things.append(thing)
            last = thing
            if relation is not None:
                reading.relations.append((*relation, thing))
                relation = None
        thing = _Ideas(set)

    for kind, idea in _meanings(words_of(caption)):
        if kind in ("colour", "size", "texture", "?"):
            thing[kind].add(idea)
        elif kind in ("shape", "shapes"):
            thing["shape"].add(idea)
            close(True, kind == "shapes")
        elif kind == "ending" and last is not None:
            last["texture"].add(idea)
        elif kind == "number":
            if thing.keys() - {"number"}:
                close(False)
            thing["number"].add(idea)
        elif kind in ("relation", "and", "article"):
            close(False)
            if kind != "article":  # "to the left of a star" continues
                relation = (last, idea) if kind == "relation" and last is not None else None
        elif kind in ("background", "background colour", "spot"):
            close(False)
            reading.places[kind].add(idea)
    close(False)
    return reading


def _meanings(words: list[str]) -> Iterator[_Meaning]:
    """Yield the meanings of the words, longest phrases first; words without a meaning of their own are skipped."""
    start = 0
    while start < len(words):
        phrases = {length: " ".join(words[start : start + length]) for length in range(_LONGEST, 0, -1)}
        length = next((length for length, phrase in phrases.items() if phrase in LEXICON), 1)
        if phrases[length] in LEXICON or phrases[length] not in _FILLERS:
            yield LEXICON.get(phrases[length], ("?", None))
        start += length


def _lexicon() -> dict[str, _Meaning]:
    lexicon: dict[str, _Meaning] = {}
    for kind, ideas in _IDEAS.items():
        uses: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for idea in ideas:
            for phrase, weight in WORDS.get(idea, {}).items():
                uses[phrase][idea] = weight
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
    lexicon |= {"a": ("article", None), "an": ("article", None), "and": ("and", None), "between": ("relation", None)}
    for colour in BACKGROUNDS["plain"]:
        lexicon |= {f"{colour} {noun}": ("background colour", colour) for noun in ("background", "wall")}
    lexicon |= {phrase: ("background", kind) for kind, phrases in _PLACES.items() for phrase in phrases}
    return lexicon | {phrase: ("spot", spot) for phrase, spot in _SPOTS.items()}


LEXICON = _lexicon()
_LONGEST = max(phrase.count(" ") for phrase in LEXICON) + 1
# All words of correct captions that have no meaning of their own.
_PHRASES = [phrase for uses in (*WORDS.values(), *GROUNDS.values()) for phrase in uses]
_MORE = "there is are that the of in on at to with sitting floating lying corner side middle center brown"
_FILLERS = {word for phrase in [*_PHRASES, *SCENERY.values(), _MORE] for word in words_of(phrase)}
