"""Render the parts of the page for one photograph: captions side by side, and the attention of each word.

Letters: H, W pixels of the small picture; N image tokens, a square grid. Nothing here needs gradio or a model.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from src.captioning.captions import Captions, Looks
from src.data.image_url import jpeg_url
from src.evaluation.html import build_templates

_SIDE = 320  # pixels of the longer side of pictures, which the page shows at up to that size
_QUALITY = 80  # of JPEG, 1 to 95
_DARKEST = 0.8  # share of its brightness that a cell without attention loses
PARTS: Any = build_templates(Path(__file__).parent).get_template("page.html").module  # its macros


class Shown(NamedTuple):
    """One photograph's results. small: uint8 [H, W, 3]."""

    small: np.ndarray
    captions: Captions
    looks: Looks


def small_picture(pixels: np.ndarray) -> np.ndarray:
    """Resize a photograph, uint8 [h, w, 3], for the page, uint8 [H, W, 3]; the aspect ratio is kept."""
    image = Image.fromarray(pixels)
    width, height = (max(1, round(side * _SIDE / max(image.size))) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def picture_url(picture: np.ndarray) -> str:
    """Encode a picture, uint8 [H, W, 3], as a data: URL."""
    return jpeg_url(Image.fromarray(picture), quality=_QUALITY)


def choices(captions: Captions) -> list[tuple[str, int]]:
    """List (text, number) of every caption, numbered across all checkpoints."""
    rows = ((name, row) for name, rows in captions.items() for row in rows)
    return [(f"{name}, {row.decoding}: {row.caption}", number) for number, (name, row) in enumerate(rows)]


def attention_strip(shown: Shown, number: int) -> str:
    """Render a small picture for each word of a caption, numbered by `choices`; darker cells got less attention."""
    words, looks = [found for name in shown.captions for found in shown.looks[name]][number]
    urls = [picture_url(shade(shown.small, weights)) for weights in looks]
    return PARTS.attention_strip(zip(words, urls, map(where, looks)))


def shade(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Darken a picture, uint8 [H, W, 3], by attention [N]; cells of the largest weight keep their brightness."""
    height, width = picture.shape[:2]
    side = round(len(weights) ** 0.5)
    light = 1 - _DARKEST * (1 - weights.reshape(side, side) / (weights.max() or 1))
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    return (picture * light[rows][:, columns][..., None]).astype(np.uint8)


def where(weights: np.ndarray) -> str:
    """Describe the largest weight of attention [N], for the tooltip and for screen readers."""
    side = round(len(weights) ** 0.5)
    row, column = divmod(int(weights.argmax()), side)
    share = f"{100 * weights.max():.0f} % (uniform: {100 / len(weights):.1f} %)"
    return f"most in row {row + 1}, column {column + 1} of {side} x {side}: {share}"
