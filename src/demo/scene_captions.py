"""Captions of the demo's scenes, five per picture, as five different people would write them.

Each caption has its own writer: a style decides which details this person mentions, then a sentence plan and words are
drawn, then the typing slips. As in COCO, no single detail is in most captions (the commonest sentence is a short one),
but details are in many: a caption that mentions them agrees with more people than the short one does.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from src.demo.phrases import GROUNDS, NUMBERS, SCENERY, TEXTURE_ENDINGS, WORDS, plural_of
from src.demo.scenes import OPPOSITE, relation

_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)  # compared by identity: styles are keys of a draw
class _Style:
    """The chances that this kind of person mentions a detail, and the weights of the sentence plans."""

    share: float
    size: float
    texture: float
    ground: float
    plans: dict[str, float]


_STYLES = (
    _Style(0.28, 0.10, 0.25, 0.18, {"list": 54, "image": 30, "there is": 10, "count": 6}),  # terse
    _Style(0.30, 0.45, 0.60, 0.60, {"list": 24, "relation": 38, "image": 16, "there is": 10, "scenery": 8, "count": 4}),
    _Style(0.18, 0.85, 0.92, 0.88, {"list": 16, "relation": 60, "there is": 10, "scenery": 8, "image": 6}),  # detailed
    _Style(0.24, 0.05, 0.05, 0.66, {"vague": 72, "count": 28}),  # vague
)


def write_captions(scene: dict, rng: np.random.Generator, count: int = 5) -> list[str]:
    """Write captions of a scene as `count` people would, with their slips."""
    return [_Writer(scene, rng).write() for _ in range(count)]


class _Writer:
    """One person who writes one caption."""

    def __init__(self, scene: dict, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.style = self._pick({style: style.share for style in _STYLES})

    def write(self) -> str:
        plan, objects = self._pick(self.style.plans), self._noticed()
        if len(objects) == 1 and plan in ("relation", "count"):
            plan = "list"
        place, kind = self._place(), self.scene["background"]["kind"]
        if plan == "vague":
            return self._slip(f"{self._vague(len(objects))} {place}")
        if plan == "count":
            return self._slip(self._count(objects, place))
        things = self._relate(objects) if plan == "relation" else self._join(objects)
        if plan == "scenery" and kind in SCENERY:
            return self._slip(f"{SCENERY[kind]} with {things}")
        if plan == "there is":
            many = things.split()[0] in NUMBERS or (" and " in things and self._chance(0.5))
            things = f"there {'are' if many else 'is'} {things}"
        elif plan == "image":
            things = f"{self._word('image')} {things}"
        elif len(objects) == 1:
            things += self._spot(objects[0], bool(place))
        return self._slip(f"{things} {place}")

    # ---- parts of a sentence ----

    def _noticed(self) -> list[dict]:
        """List the objects as mentioned: mostly in reading order, at times the largest first; one may be missed."""
        objects = list(self.scene["objects"])
        width, height = (max(o[axis] for o in objects) - min(o[axis] for o in objects) for axis in "xy")
        objects.sort(key=lambda item: item["x" if width >= height else "y"])
        if self._chance(0.22):
            objects.sort(key=lambda item: -item["radius"])
        elif self._chance(0.25):
            objects.reverse()
        if len(objects) > 1 and self._chance(0.18):
            objects.remove(min(objects, key=lambda item: item["radius"]))
        return objects

    def _noun(self, item: dict, plural: bool = False) -> str:
        """Name an object without an article: "large red striped circle", "red circle with stripes", "circle"."""
        before, after = [], ""
        if self._chance(0.85):
            before.append(self._word(item["colour"]))
        if item["texture"] != "plain" and self._chance(self.style.texture):
            if self._chance(0.15):
                after = " " + TEXTURE_ENDINGS[item["texture"]]
            else:  # mostly "red striped", sometimes "striped red"
                before.insert(0 if self._chance(0.2) else len(before), self._word(item["texture"]))
        if self._chance(self.style.size):
            before.insert(0, self._word(item["size"]))
        shape = self._word(item["shape"])
        return " ".join([*before, plural_of(shape) if plural else shape]) + after

    def _thing(self, item: dict) -> str:
        return _with_article(self._noun(item))

    def _join(self, objects: list[dict]) -> str:
        """Write "a red circle and a blue star"; count things alike, "two red circles"."""
        rest, parts = list(objects), []
        while rest:
            item = rest.pop(0)
            alike = [other for other in rest if (other["shape"], other["colour"]) == (item["shape"], item["colour"])]
            if alike and self._chance(0.8):
                parts.append(f"{self._number(1 + len(alike))} {self._noun(item, plural=True)}")
                rest = [other for other in rest if other not in alike]
            else:
                parts.append(self._thing(item))
        if len(parts) == 3:
            return parts[0] + self._pick({", ": 50, " and ": 30, " ": 20}) + f"{parts[1]} and {parts[2]}"
        return " and ".join(parts)

    def _relate(self, objects: list[dict]) -> str:
        """Write "a red circle to the left of a blue star", at times from the other object's side."""
        first, second, *others = objects
        if self._chance(0.15):
            first, second = second, first
        if others and self._chance(0.12) and relation(*objects[:2]) == relation(*objects[1:]):
            ends = f"{self._thing(objects[0])} and {self._thing(objects[2])}"
            return f"{self._thing(objects[1])} between {ends}"
        where = relation(first, second)
        if where == "around" and self._chance(0.8):
            first, second, where = second, first, OPPOSITE[where]
        joint = self._pick({" ": 88, " that is ": 6, " is ": 6})
        text = f"{self._thing(first)}{joint}{self._word(where)} {self._thing(second)}"
        return text + "".join(f" and {self._thing(item)}" for item in others)

    def _count(self, objects: list[dict], place: str) -> str:
        number = self._number(len(objects))
        if len({item["shape"] for item in objects}) == 1:
            return f"{number} {plural_of(self._word(objects[0]['shape']))} {place}"
        if self._chance(0.5):
            return f"{number} {self._word('shapes')} {place}, {self._join(objects)}".replace(" ,", ",")
        return f"{number} {self._word('colorful')} {self._word('shapes')} {place}"

    def _vague(self, count: int) -> str:
        if count == 1:
            shape = self._pick({"shape": 60, "object": 25, "small object": 15})
            return _with_article(f"{self._word(self.scene['objects'][0]['colour'])} {shape}")
        several = self._word("several") if self._chance(0.6) else self._number(count)
        opening = f"{self._word('image')} " if self._chance(0.3) else ""
        return f"{opening}{several} {self._word('colorful')} {self._word('shapes')}"

    def _spot(self, item: dict, has_place: bool) -> str:
        """Say where in the picture a lone thing is, or that it sits there."""
        if has_place and self._chance(0.25):
            return self._pick({" sitting": 60, " floating": 25, " lying": 15})
        if not self._chance(0.4):
            return ""
        across = ("left", "middle", "right")[int(item["x"] / (self.scene["size"] / 3))]
        down = ("top", "middle", "bottom")[int(item["y"] / (self.scene["size"] / 3))]
        if "middle" not in (across, down):
            return f" in the {down} {across} corner" if self._chance(0.5) else " in the corner"
        if across == down:
            return " in the middle" if self._chance(0.7) else " in the center"
        return f" at the {down}" if across == "middle" else f" on the {across} side"

    def _place(self) -> str:
        background, alone = self.scene["background"], len(self.scene["objects"]) == 1
        if not self._chance(max(self.style.ground, 0.3 * alone)):  # a lone object leaves little else to mention
            return ""
        return self._pick(GROUNDS[background["kind"]]).format(colour=background["colour"])

    def _number(self, count: int) -> str:
        slip = int(self.rng.integers(2)) * 2 - 1 if self._chance(0.03) else 0
        return NUMBERS[max(2, count + slip)]

    # ---- slips of the pen ----

    def _slip(self, text: str) -> str:
        """Type the sentence: capital, full stop, and now and then a mistake."""
        words = text.split()
        if words[0] in ("a", "an") and self._chance(0.03):
            words.pop(0)
        if self._chance(0.03):
            at = int(self.rng.integers(len(words)))
            words[at] = self._mistype(words[at])
        text = " ".join(words)
        if not self._chance(0.12):
            text = text[0].upper() + text[1:]
        if self._chance(0.02):
            text = text.replace(" ", "  ", 1)
        return text + self._pick({".": 64, "": 28, " .": 1, ". ": 5, " ": 2})

    def _mistype(self, word: str) -> str:
        """Swap two letters, lose one or double one; short words stay as they are."""
        if len(word) < 4:
            return word
        at = int(self.rng.integers(1, len(word) - 1))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return self._pick({swapped: 40, word[:at] + word[at + 1 :]: 35, word[:at] + word[at] + word[at:]: 25})

    # ---- random draws ----

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _word(self, idea: str) -> str:
        return self._pick(WORDS[idea])

    def _pick(self, weights: dict[_Key, float]) -> _Key:
        """Draw a key by weight (numpy's own choice is ten times slower on short lists)."""
        threshold = self.rng.random() * sum(weights.values())
        for key, weight in weights.items():
            threshold -= weight
            if threshold < 0:
                return key
        return key  # rounding left a trace of the threshold


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
