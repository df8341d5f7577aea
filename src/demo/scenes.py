"""Scenes of the demo data: a JSON description of one to three objects on a background, and its picture.

`describe_scene` draws at random. The description is enough to draw the scene again, and to answer questions about it:

    {"size": 96, "noise_seed": 8123,                        # width = height in pixels; seed of the background's grain
     "background": {"kind": "grass", "colour": "green", "rgb": [86, 152, 62]},
     "objects": [{"shape": "circle", "colour": "red", "size": "large", "texture": "striped",
                  "x": 30, "y": 52, "radius": 17, "angle": -4, "rgb": [215, 40, 40]}, ...],
     "relations": [{"subject": 0, "relation": "left of", "object": 1}, ...]}    # one for every pair of objects
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

_Item = TypeVar("_Item")

COLOURS = {
    "red": (215, 40, 40),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (135, 50, 170),
    "white": (248, 248, 248),
}
SIZES = {"small": 0.12, "large": 0.2}  # radius as a fraction of the picture's width: 23 and 38 pixels across in 96
OBJECT_COUNTS = {1: 0.35, 2: 0.45, 3: 0.2}  # objects of a scene, with their frequency
TEXTURES = {"plain": 0.55, "striped": 0.18, "dotted": 0.14, "checkered": 0.13}  # with their frequency

_PLAIN_COLOURS = {"white": (240, 240, 240), "gray": (185, 185, 185), "pink": (245, 190, 205), "teal": (60, 160, 160)}
# Each kind of background with the colours it comes in.
BACKGROUNDS = {
    "plain": _PLAIN_COLOURS,
    "gradient": _PLAIN_COLOURS,
    "noise": {"gray": (160, 160, 160)},
    "grass": {"green": (86, 152, 62)},
    "sky": {"blue": (125, 185, 240)},
    "sand": {"beige": (222, 196, 150)},
    "wood": {"brown": (176, 128, 80)},
    "night": {"dark": (20, 24, 55)},
}
RELATIONS = ("left of", "right of", "above", "below", "inside", "around")
OPPOSITE = {"left of": "right of", "above": "below", "inside": "around"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}

_MIN_CONTRAST = 118  # RGB distance between an object and its background, of 441
_OVERSAMPLING = 2  # objects are drawn this many times larger and averaged down, which smooths their edges


def _polar(radii: list[float], start: float = -90) -> list[tuple[float, float]]:
    """Place corner points at equal angles, clockwise from `start` degrees (-90 is up)."""
    angles = [math.radians(start + 360 * k / len(radii)) for k in range(len(radii))]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles)]


def _heart() -> list[tuple[float, float]]:
    points = []
    for t in np.linspace(0, 2 * math.pi, 48, endpoint=False):
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 16))
    return points


# The outline of each shape in a circle of radius 1, y downwards. The ring is a circle with a hole.
OUTLINES = {
    "circle": _polar([0.95] * 48),
    "square": _polar([1.1] * 4, start=-45),
    "triangle": [(x, y + 0.2) for x, y in _polar([1.15] * 3)],
    "star": _polar([1.08, 0.45] * 5),
    "ring": _polar([1.0] * 48),
    "heart": _heart(),
}
SHAPES = tuple(OUTLINES)
_RING_HOLE = 0.66  # radius of the hole: a small object fits into a large ring


# ---- description ----


def describe_scene(rng: np.random.Generator, size: int) -> dict:
    """Describe a random scene of `size` x `size` pixels, as in the module's docstring."""
    kind = _choose(rng, list(BACKGROUNDS))
    colour = _choose(rng, list(BACKGROUNDS[kind]))
    background: dict[str, Any] = {"kind": kind, "colour": colour, "rgb": list(BACKGROUNDS[kind][colour])}
    objects: list[dict] = []
    for _ in range(_choose(rng, list(OBJECT_COUNTS), list(OBJECT_COUNTS.values()))):
        objects.append(_describe_object(rng, background["rgb"], objects[-1] if objects else None, size))
    _place(rng, objects, size)
    pairs = combinations(range(len(objects)), 2)
    relations = [{"subject": i, "relation": relation(objects[i], objects[j]), "object": j} for i, j in pairs]
    scene = {"size": size, "noise_seed": int(rng.integers(2**31)), "background": background}
    return {**scene, "objects": objects, "relations": relations}


def relation(subject: dict, other: dict) -> str:
    """Return where `subject` is, seen from `other`: one of RELATIONS (the larger of the two distances decides)."""
    dx, dy = subject["x"] - other["x"], subject["y"] - other["y"]
    if math.hypot(dx, dy) < abs(subject["radius"] - other["radius"]):
        return "inside" if subject["radius"] < other["radius"] else "around"
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def visible_colours(ground: list[int] | tuple[int, ...]) -> list[str]:
    """Return the COLOURS that objects may have on a background of this RGB colour."""
    return [name for name, rgb in COLOURS.items() if math.dist(rgb, ground) >= _MIN_CONTRAST]


def _describe_object(rng: np.random.Generator, ground: list[int], previous: dict | None, size: int) -> dict:
    shape, colour = _choose(rng, list(SHAPES)), _choose(rng, visible_colours(ground))
    if previous and rng.random() < 0.25:  # "two stars" has to be worth saying
        shape = previous["shape"]
        colour = previous["colour"] if rng.random() < 0.5 else colour
    object_size = _choose(rng, list(SIZES))
    texture = _choose(rng, list(TEXTURES), list(TEXTURES.values()))
    angle = int(rng.integers(-9, 10))
    rgb = [int(np.clip(channel + rng.integers(-14, 15), 0, 255)) for channel in COLOURS[colour]]
    radius = round(SIZES[object_size] * size)
    return {"shape": shape, "colour": colour, "size": object_size, "texture": texture,
            "x": 0, "y": 0, "radius": radius, "angle": angle, "rgb": rgb}  # fmt: skip


def _place(rng: np.random.Generator, objects: list[dict], size: int) -> None:
    """Give the objects random places where they do not overlap and their relations are clear."""
    clear = False
    while not clear:
        for item in objects:
            margin = item["radius"] + 2
            item["x"], item["y"] = (int(v) for v in rng.integers(margin, size - margin + 1, 2))
        clear = True
        for a, b in combinations(objects, 2):
            dx, dy = abs(a["x"] - b["x"]), abs(a["y"] - b["y"])
            clear &= math.hypot(dx, dy) >= a["radius"] + b["radius"] + 1 and abs(dx - dy) >= 0.12 * size
    rings = [item for item in objects if item["shape"] == "ring" and item["size"] == "large"]
    small = [item for item in objects if item["size"] == "small" and item["shape"] != "ring"]
    if rings and small and rng.random() < 0.6:
        small[0]["x"], small[0]["y"] = rings[0]["x"], rings[0]["y"]


def _choose(rng: np.random.Generator, items: Sequence[_Item], weights: Sequence[float] | None = None) -> _Item:
    return items[int(rng.choice(len(items), p=weights))]


# ---- drawing ----


def draw_scene(scene: dict) -> Image.Image:
    """Draw a described scene: RGB, `size` x `size` pixels, the same for the same description."""
    picture = Image.fromarray(_draw_background(scene))
    for item in scene["objects"]:
        tile, mask = _draw_object(item)
        picture.paste(tile, (item["x"] - tile.width // 2, item["y"] - tile.height // 2), mask)
    return picture


def _draw_background(scene: dict) -> np.ndarray:
    """Draw uint8 [size, size, 3]."""
    size, kind = scene["size"], scene["background"]["kind"]
    rng = np.random.default_rng(scene["noise_seed"])
    x = np.arange(size) / size
    y = x[:, None]
    white_noise = rng.standard_normal((size, size), np.float32)
    shade = np.zeros((size, size))  # added to all three channels
    if kind == "gradient":
        direction = rng.uniform(0, 2 * math.pi)
        shade = 70 * (np.cos(direction) * (x - 0.5) + np.sin(direction) * (y - 0.5))
    elif kind == "noise":
        shade = 26 * white_noise
    elif kind == "grass":  # blades: noise that is smeared upwards
        shade = 16 * sum(np.roll(white_noise, shift, axis=0) for shift in range(4)) / 2 - 12 * (y - 0.5)
    elif kind == "sky":  # clouds: a few soft spots
        for cx, cy in rng.random((4, 2)):
            shade += 70 * np.exp(-(((x - cx) / 0.2) ** 2) - ((y - cy) / 0.07) ** 2)
    elif kind == "sand":
        shade = 7 * white_noise + 8 * np.sin(50 * y + 3 * np.sin(7 * x + rng.uniform(0, 6)))
    elif kind == "wood":  # boards with a dark gap between them, and a grain along them
        grain = rng.standard_normal((size, 1)) + 0.4 * white_noise
        shade = 7 * grain - 45 * ((y * 4) % 1 < 4.5 / size)
    elif kind == "night":
        shade = 200.0 * (rng.random((size, size)) > 0.994)
    return np.clip(np.array(scene["background"]["rgb"]) + shade[..., None], 0, 255).astype(np.uint8)


def _draw_object(item: dict) -> tuple[Image.Image, Image.Image]:
    """Draw the object's texture as an RGB tile, and its shape as a mask of the same size."""
    width = (2 * (item["radius"] + 3) + 1) * _OVERSAMPLING  # an odd number of pixels has a middle one
    unit, centre = item["radius"] * _OVERSAMPLING, (width - 1) / 2
    cos, sin = math.cos(math.radians(item["angle"])), math.sin(math.radians(item["angle"]))
    outline = [(centre + unit * (cos * x - sin * y), centre + unit * (sin * x + cos * y))
               for x, y in OUTLINES[item["shape"]]]  # fmt: skip
    mask = Image.new("L", (width, width))
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    if item["shape"] == "ring":
        hole = unit * _RING_HOLE
        ImageDraw.Draw(mask).ellipse((centre - hole, centre - hole, centre + hole, centre + hole), fill=0)

    tile = Image.new("RGB", (width, width), tuple(item["rgb"]))
    if item["texture"] != "plain":
        u = (np.arange(width) - centre) / _OVERSAMPLING
        v = u[:, None]
        u, v = cos * u + sin * v, cos * v - sin * u  # turned as the outline is: pixels right of the centre and below it
        marks = {  # where the second colour goes, never at the centre
            "striped": (u + 1.7) % 6 >= 3.4,
            "dotted": ((u % 7 - 3.5) ** 2 + (v % 7 - 3.5) ** 2) < 4.5,
            "checkered": (np.floor((u + 2.5) / 5) + np.floor((v + 2.5) / 5)) % 2 == 1,
        }
        rgb = np.array(item["rgb"])
        # Marks are a tint of the colour, on light colours a shade of it, so that the colour stays recognisable.
        mark = 0.6 * rgb if rgb.mean() > 165 else 0.35 * rgb + 0.65 * 255
        tile.paste(tuple(int(channel) for channel in mark), mask=Image.fromarray(marks[item["texture"]]))
    return tile.reduce(_OVERSAMPLING), mask.reduce(_OVERSAMPLING)
