"""Questions about the demo's scenes, written from the description of a scene.

A question is asked only if the description leaves one answer: "what color is the star" if there is one star, or if all
stars have one colour. Wrong options are of the same kind as the answer. A blind guesser, who knows how often each
answer is right, must gain nothing: given a set of options, each of them is equally likely to be the answer.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from src.data.questions import Question
from src.demo.phrases import NUMBERS
from src.demo.scenes import BACKGROUNDS, COLOURS, OBJECT_COUNTS, OPPOSITE, SHAPES, SIZES, TEXTURES, visible_colours

MIN_QUESTIONS = 5  # of a scene
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
_SCENIC = ("grass", "sky", "sand", "wood", "night", "noise")  # backgrounds that are asked for by name
_CORNERS = ("top left", "top right", "bottom left", "bottom right")

_TEXT = {
    "colour": "what color {be} {about}",
    "shape": "what shape {be} {about}",
    "size": "what size {be} {about}",
    "texture": "what pattern is on {about}",
    "relation": "where is {about} relative to {other}",
    "count": "how many objects are there",
    "background": "what is the background",
    "background colour": "what color is the background",
    "corner": "in which corner is {about}",
    "side": "at which side is {about}",
}
TYPES = tuple(_TEXT)
_VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "texture": tuple(texture for texture in TEXTURES if texture != "plain"),
}
_OPTIONS = {"size": 2, "texture": 2, "count": 2}  # options of a question, 4 where not named


class Referent(NamedTuple):
    """The objects that a question is about: all whose `attribute` is `value`."""

    attribute: str
    value: str


class Asked(NamedTuple):
    """The type of a question, the objects it is about, and any others that these are compared with."""

    type: str
    about: Referent | None = None
    other: Referent | None = None


class Candidate(NamedTuple):
    """A question that a scene allows. `is_plural`: it is about several objects."""

    asked: Asked
    is_plural: bool
    answer: str


def choose_questions(scene: dict, rng: np.random.Generator) -> list[Candidate]:
    """Choose one question of every type that the scene allows, and more of the same types if these are too few.

    Objects are named by size or pattern only if shape and colour do not tell them apart.
    """
    candidates = list(askable(scene))
    candidates = [candidates[place] for place in rng.permutation(len(candidates))]
    candidates.sort(key=lambda item: item.asked.about is not None and item.asked.about.attribute in ("size", "texture"))
    chosen: dict[str, Candidate] = {}
    for candidate in candidates:
        chosen.setdefault(candidate.asked.type, candidate)
    spare = [candidate for candidate in candidates if candidate not in chosen.values()]
    return [*chosen.values(), *spare[: max(0, MIN_QUESTIONS - len(chosen))]]


def write_question(candidate: Candidate, image_id: int, rng: np.random.Generator) -> Question:
    """Put a question into words, with its options."""
    asked, text = candidate.asked, _text(candidate.asked, candidate.is_plural)
    return Question(image_id, text, draw_options(asked.type, candidate.answer, rng), candidate.answer, asked.type)


@cache
def asked_by_text() -> dict[str, Asked]:
    """Map every question text to its meaning: the inverse of `write_question`."""
    referents = [Referent(name, value) for name, values in _VALUES.items() for value in values]
    unique = [referent for referent in referents if referent.attribute in ("shape", "colour")]
    asked = [Asked(name) for name in ("count", "background", "background colour")]
    asked += [Asked(name, about) for name in ("corner", "side") for about in unique if about.attribute == "shape"]
    asked += [Asked("relation", one, other) for one, other in product(unique, unique) if one != other]
    asked += [Asked(name, about) for name in _VALUES for about in referents if about.attribute != name]
    return {_text(item, plural): item for item in asked for plural in (False, True)}


def _text(asked: Asked, plural: bool) -> str:
    names = {}
    for name, referent in (("about", asked.about), ("other", asked.other)):
        if referent is not None:
            noun = referent.value if referent.attribute == "shape" else f"{referent.value} object"
            names[name] = f"the {noun}{'s' if plural else ''}"
    return _TEXT[asked.type].format(be="are" if plural else "is", **names)


def draw_options(question_type: str, answer: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw wrong options and shuffle the answer in. P(set | answer) is proportional to the set's product of odds."""
    odds = option_odds(question_type)
    others = [option for option in odds if option != answer]
    sets = list(combinations(others, min(_OPTIONS.get(question_type, 4), len(odds)) - 1))
    weights = np.array([math.prod(odds[option] for option in wrong) for wrong in sets])
    options = [answer, *sets[int(rng.choice(len(sets), p=weights / weights.sum()))]]
    return tuple(options[place] for place in rng.permutation(len(options)))


@cache
def option_odds(question_type: str) -> dict[str, float]:
    """Return the odds of every option of a type of question.

    Let sets of k options be drawn with probability proportional to the product of their odds (conditional Poisson
    sampling), and one of the set be the answer, each with probability 1/k. Then an option is the answer in 1/k of the
    sets that hold it; the odds make that as often as it is right in scenes. Iteration finds them (Chen, Dempster and
    Liu 1994).
    """
    frequencies = _frequencies()[question_type]
    shares = np.array(list(frequencies.values()))
    size = min(_OPTIONS.get(question_type, 4), len(shares))
    wanted = shares / shares.sum() * size  # how many of the sets hold each option
    sets = np.array(list(combinations(range(len(wanted)), size)))  # [sets, size]
    odds = np.ones(len(wanted))
    for _ in range(200):
        weights = odds[sets].prod(1)
        held = np.bincount(sets.reshape(-1), np.repeat(weights / weights.sum(), size))
        odds *= wanted / held
    return dict(zip(frequencies, odds.tolist()))


@cache
def _frequencies() -> dict[str, dict[str, float]]:
    """Return how often each answer to each type of question is right, up to a factor per type."""
    colours = dict.fromkeys(COLOURS, 0.0)  # an object has any colour that stands out from its background
    for grounds in BACKGROUNDS.values():
        for rgb in grounds.values():
            visible = visible_colours(rgb)
            for colour in visible:
                colours[colour] += 1 / (len(grounds) * len(visible))
    equal = {
        "shape": SHAPES,
        "size": SIZES,
        "relation": DIRECTIONS.values(),
        "background": _SCENIC,
        "background colour": BACKGROUNDS["plain"],
        "corner": _CORNERS,
        "side": ("left", "right", "top", "bottom"),
    }
    return {
        "colour": colours,
        "count": {NUMBERS[count]: share for count, share in OBJECT_COUNTS.items()},
        "texture": {texture: TEXTURES[texture] for texture in _VALUES["texture"]},
        **{kind: dict.fromkeys(answers, 1.0) for kind, answers in equal.items()},
    }


def askable(scene: dict) -> Iterator[Candidate]:
    """Yield every question that has one answer in a scene."""
    background, objects, size = scene["background"], scene["objects"], scene["size"]
    yield Candidate(Asked("count"), True, NUMBERS[len(objects)])
    if background["kind"] in _SCENIC:
        yield Candidate(Asked("background"), False, background["kind"])
    else:
        yield Candidate(Asked("background colour"), False, background["colour"])
    if len(objects) == 1:
        (item,) = objects
        across, down = _zone(item["x"] / size, "left", "right"), _zone(item["y"] / size, "top", "bottom")
        where = f"{down} {across}".replace("middle", "").strip()
        if across and down and where:
            asked = Asked("corner" if where in _CORNERS else "side", Referent("shape", item["shape"]))
            yield Candidate(asked, False, where)
    for entry in scene["relations"]:
        first, second = objects[entry["subject"]], objects[entry["object"]]
        if entry["relation"] in DIRECTIONS:
            here, there = DIRECTIONS[entry["relation"]], DIRECTIONS[OPPOSITE[entry["relation"]]]
            for one, other in product(_names(first, objects), _names(second, objects)):
                yield Candidate(Asked("relation", one, other), False, here)
                yield Candidate(Asked("relation", other, one), False, there)
    for attribute in _VALUES:
        values = dict.fromkeys(item[attribute] for item in objects)  # a set would have no order
        for value, wanted in product(values, _VALUES):
            group = [item for item in objects if item[attribute] == value]
            answers = {item[wanted] for item in group}
            if wanted != attribute and len(answers) == 1 and "plain" not in (value, *answers):  # nobody says "plain"
                yield Candidate(Asked(wanted, Referent(attribute, value)), len(group) > 1, answers.pop())


def _zone(place: float, low: str, high: str) -> str | None:
    """Name the place of a thing in the picture, 0 to 1; None between the zones, where people would differ."""
    if place < 0.3 or place > 0.7:
        return low if place < 0.3 else high
    return "middle" if 0.4 < place < 0.6 else None


def _names(item: dict, objects: list[dict]) -> list[Referent]:
    """Return what tells an object from all others: its shape, its colour, either or none."""
    alone = [name for name in ("shape", "colour") if [other[name] for other in objects].count(item[name]) == 1]
    return [Referent(name, item[name]) for name in alone]
