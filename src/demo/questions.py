"""Questions about the demo's scenes, written from the description of a scene.

A question is asked only where the description leaves one answer: "what color is the star" where there is one star, or
where all stars have one colour. Wrong options are of the same kind as the answer. A blind guesser, who knows how often
each answer is right, must gain nothing: sets of options are drawn so that, given the set, each of it is equally likely
to be the answer.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from src.data.questions import Question
from src.demo.scenes import BACKGROUNDS, COLOURS, OBJECT_COUNTS, OPPOSITE, SHAPES, SIZES, TEXTURES, visible_colours
from src.demo.words import NUMBERS

MIN_QUESTIONS = 5  # of a scene
SCENIC = ("grass", "sky", "sand", "wood", "night", "noise")  # backgrounds that are asked for by name
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right", "top", "bottom")
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}

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
ATTRIBUTES = ("colour", "shape", "size", "texture")
_OPTIONS = {"size": 2, "texture": 2, "count": 2}  # options of a question, 4 where not named


class Referent(NamedTuple):
    """The objects that a question is about: all whose `attribute` is `value`."""

    attribute: str
    value: str


class Asked(NamedTuple):
    """What a question asks for: its type, the objects it is about, and where they are compared with others, those."""

    type: str
    about: Referent | None = None
    other: Referent | None = None


class Candidate(NamedTuple):
    """A question that a scene allows. `is_plural`: it is about several objects."""

    asked: Asked
    is_plural: bool
    answer: str


def questions_of(scene: dict, image_id: int, rng: np.random.Generator) -> list[Question]:
    """MIN_QUESTIONS questions about a scene, or more."""
    return [write_question(candidate, image_id, rng) for candidate in choose_questions(scene, rng)]


def choose_questions(scene: dict, rng: np.random.Generator) -> list[Candidate]:
    """One question of every type that the scene allows, then, if these are too few, others of the same types.

    Objects are named by size or pattern only where shape or colour does not tell them apart.
    """
    candidates = askable(scene)
    candidates = [candidates[place] for place in rng.permutation(len(candidates))]
    candidates.sort(key=lambda candidate: _is_vague(candidate.asked.about))
    chosen: dict[str, Candidate] = {}
    for candidate in candidates:
        chosen.setdefault(candidate.asked.type, candidate)
    spare = [candidate for candidate in candidates if candidate not in chosen.values()]
    return [*chosen.values(), *spare[: max(0, MIN_QUESTIONS - len(chosen))]]


def _is_vague(referent: Referent | None) -> bool:
    return referent is not None and referent.attribute in ("size", "texture")


def write_question(candidate: Candidate, image_id: int, rng: np.random.Generator) -> Question:
    """The words of a question, with its options."""
    asked, text = candidate.asked, _text(candidate.asked, candidate.is_plural)
    return Question(image_id, text, draw_options(asked.type, candidate.answer, rng), candidate.answer, asked.type)


@cache
def asked_by_text() -> dict[str, Asked]:
    """What every question text asks for: the inverse of `write_question`."""
    values = zip(ATTRIBUTES, (COLOURS, SHAPES, SIZES, TEXTURES))
    referents = [Referent(name, value) for name, known in values for value in known if value != "plain"]
    unique = [referent for referent in referents if referent.attribute in ("shape", "colour")]
    pairs = [(one, other) for one in unique for other in unique if one != other]
    asked = [Asked(name) for name in ("count", "background", "background colour")]
    asked += [Asked(name, about) for name in ("corner", "side") for about in unique if about.attribute == "shape"]
    asked += [Asked("relation", *pair) for pair in pairs]
    asked += [Asked(name, about) for name in ATTRIBUTES for about in referents if about.attribute != name]
    return {_text(item, plural): item for item in asked for plural in (False, True)}


def _text(asked: Asked, plural: bool) -> str:
    names = {name: _phrase(getattr(asked, name), plural) for name in ("about", "other")}
    return _TEXT[asked.type].format(be="are" if plural else "is", **names)


def draw_options(question_type: str, answer: str, rng: np.random.Generator) -> tuple[str, ...]:
    """The answer among wrong options, in random order. P(set | answer) is proportional to the set's product of odds."""
    odds = option_odds(question_type)
    others = [option for option in odds if option != answer]
    sets = list(combinations(others, min(_OPTIONS.get(question_type, 4), len(odds)) - 1))
    weights = np.array([math.prod(odds[option] for option in wrong) for wrong in sets])
    options = [answer, *sets[int(rng.choice(len(sets), p=weights / weights.sum()))]]
    return tuple(options[place] for place in rng.permutation(len(options)))


@cache
def option_odds(question_type: str) -> dict[str, float]:
    """The odds of every option of a type of question.

    Let sets of k options be drawn with probability proportional to the product of their odds (conditional Poisson
    sampling), and one of the set be the answer, each with probability 1/k. Then an option is the answer in 1/k of the
    sets that hold it; the odds are those for which that is as often as it is right in scenes. They are found by
    iteration (Chen, Dempster and Liu 1994).
    """
    frequencies = _frequencies(question_type)
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


def _frequencies(question_type: str) -> dict[str, float]:
    """How often each answer to this type of question is right, up to a factor."""
    if question_type == "colour":
        return _colour_frequencies()
    if question_type == "count":
        return {NUMBERS[count]: share for count, share in OBJECT_COUNTS.items()}
    if question_type == "texture":
        return {texture: share for texture, share in TEXTURES.items() if texture != "plain"}
    equal = {
        "shape": SHAPES,
        "size": SIZES,
        "relation": DIRECTIONS.values(),
        "background": SCENIC,
        "background colour": BACKGROUNDS["plain"],
        "corner": CORNERS,
        "side": SIDES,
    }
    return dict.fromkeys(equal[question_type], 1.0)


@cache
def _colour_frequencies() -> dict[str, float]:
    """Colours of objects over all backgrounds: an object has any that stands out from its background."""
    frequencies = dict.fromkeys(COLOURS, 0.0)
    for grounds in BACKGROUNDS.values():
        for rgb in grounds.values():
            visible = visible_colours(rgb)
            for colour in visible:
                frequencies[colour] += 1 / (len(grounds) * len(visible))
    return frequencies


# ---- what can be asked ----


def askable(scene: dict) -> list[Candidate]:
    """Every question that has one answer in a scene."""
    return list(_about_scene(scene)) + [found for name in ATTRIBUTES for found in _about_objects(scene, name)]


def _about_scene(scene: dict) -> Iterator[Candidate]:
    background, objects, size = scene["background"], scene["objects"], scene["size"]
    yield Candidate(Asked("count"), True, NUMBERS[len(objects)])
    if background["kind"] in SCENIC:
        yield Candidate(Asked("background"), False, background["kind"])
    else:
        yield Candidate(Asked("background colour"), False, background["colour"])
    if len(objects) == 1:
        (item,) = objects
        across = _zone(item["x"] / size, "left", "right")
        down = _zone(item["y"] / size, "top", "bottom")
        about = Referent("shape", item["shape"])
        if across and down:
            where = f"{down} {across}".replace("middle", "").strip()
            if where:
                yield Candidate(Asked("corner" if where in CORNERS else "side", about), False, where)
    for entry in scene["relations"]:
        first, second = objects[entry["subject"]], objects[entry["object"]]
        if entry["relation"] in DIRECTIONS:
            here, there = DIRECTIONS[entry["relation"]], DIRECTIONS[OPPOSITE[entry["relation"]]]
            for one, other in product(_names(first, objects), _names(second, objects)):
                yield Candidate(Asked("relation", one, other), False, here)
                yield Candidate(Asked("relation", other, one), False, there)


def _zone(place: float, low: str, high: str) -> str | None:
    """Where in the picture, 0 to 1, a thing is; None between the zones, where people would differ."""
    if place < 0.3 or place > 0.7:
        return low if place < 0.3 else high
    return "middle" if 0.4 < place < 0.6 else None


def _about_objects(scene: dict, attribute: str) -> Iterator[Candidate]:
    """Questions about the objects that an attribute's value picks out, where they agree on what is asked for."""
    objects = scene["objects"]
    for value in {item[attribute]: None for item in objects}:  # a set would have no order
        if value == "plain":  # nobody would call an object so
            continue
        group = [item for item in objects if item[attribute] == value]
        for wanted in ATTRIBUTES:
            answers = {item[wanted] for item in group}
            if wanted != attribute and len(answers) == 1 and answers != {"plain"}:
                yield Candidate(Asked(wanted, Referent(attribute, value)), len(group) > 1, answers.pop())


def _names(item: dict, objects: list[dict]) -> list[Referent]:
    """What tells an object from all others: its shape, its colour, either or none."""
    alone = {name: [other[name] for other in objects].count(item[name]) == 1 for name in ("shape", "colour")}
    return [Referent(name, item[name]) for name in alone if alone[name]]


def _phrase(referent: Referent | None, plural: bool) -> str:
    if referent is None:
        return ""
    noun = referent.value if referent.attribute == "shape" else f"{referent.value} object"
    return f"the {noun}{'s' if plural else ''}"
