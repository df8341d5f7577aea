"""What the page shows of one photograph, as HTML: captions side by side, and where the words of one looked.

Letters: H, W pixels of the small picture; N image tokens, a square grid. Nothing here needs gradio or a model.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from src.captioning.captions import Captions
from src.data.image_url import jpeg_url

_SIDE = 320  # pixels of the longer side of pictures, which are shown at up to that size, and at half of it
_QUALITY = 80  # of JPEG, 1 to 95
_DARKEST = 0.8  # how much light a cell without attention loses

STYLE = """
.captions { width: 100%; border-collapse: collapse; }
.captions th, .captions td { padding: .35rem .6rem; border: 1px solid var(--border-color-primary); text-align: left;
  vertical-align: top; }
.captions th { font-weight: 600; }
.captions tbody th { white-space: nowrap; width: 1%; }
.logprob { color: var(--body-text-color); opacity: .75; font-size: .85em; white-space: nowrap; }
.looks { display: flex; flex-wrap: wrap; gap: .75rem; }
.looks figure { margin: 0; }
.looks img { display: block; max-width: 10rem; max-height: 10rem; margin: auto; }
.looks figcaption { text-align: center; padding-top: .2rem; }
.seen { margin: auto; }
.failed { padding: .6rem; border: 1px solid var(--error-border-color); color: var(--error-text-color); }
"""


class Shown(NamedTuple):
    """One photograph's results. small: uint8 [H, W, 3]; looks: by checkpoint, the words of each caption and the
    attention of each, float32 [words, N].
    """

    small: np.ndarray
    captions: Captions
    looks: Mapping[str, Sequence[tuple[list[str], np.ndarray]]]


def small_picture(pixels: np.ndarray) -> np.ndarray:
    """A photograph, uint8 [h, w, 3], as the page shows it, uint8 [H, W, 3]; its shape is kept."""
    image = Image.fromarray(pixels)
    scale = _SIDE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))


def captions_table(captions: Captions) -> str:
    """A column for each checkpoint, a row for each decoding, log-probs behind the captions."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in captions)
    rows = []
    for row in zip(*captions.values()):
        cells = "".join(f'<td>{escape(one.caption)} <span class="logprob">{one.logprob:.1f}</span></td>' for one in row)
        rows.append(f'<tr><th scope="row">{escape(row[0].decoding)}</th>{cells}</tr>')
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    return f'<table class="captions">{head}<tbody>{"".join(rows)}</tbody></table>'


def choices(captions: Captions) -> list[tuple[str, int]]:
    """(text, number) of every caption, counted through all checkpoints."""
    texts = [f"{name}, {row.decoding}: {row.caption}" for name, rows in captions.items() for row in rows]
    return [(text, number) for number, text in enumerate(texts)]


def attention_strip(shown: Shown, number: int) -> str:
    """A small picture for each word of a caption, numbered by `choices`: where it looked less, it is darker."""
    words, looks = [found for name in shown.captions for found in shown.looks[name]][number]
    figures = [
        f'<figure><img src="{_url(shade(shown.small, weights))}" alt="{escape(where(weights))}" '
        f'title="{escape(where(weights))}"><figcaption>{escape(word)}</figcaption></figure>'
        for word, weights in zip(words, looks)
    ]
    return f'<div class="looks">{"".join(figures)}</div>'


def picture_frame(small: np.ndarray) -> str:
    """The photograph as the checkpoints see it."""
    return f'<img class="seen" src="{_url(small)}" alt="the photograph as the model sees it">'


def shade(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture, uint8 [H, W, 3], under attention [N]: cells of the largest weight keep their light."""
    height, width = picture.shape[:2]
    side = round(len(weights) ** 0.5)
    light = 1 - _DARKEST * (1 - weights.reshape(side, side) / (weights.max() or 1))
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    return (picture * light[rows][:, columns][..., None]).astype(np.uint8)


def where(weights: np.ndarray) -> str:
    """Where attention [N] is most: for the tooltip, and for who does not see the picture."""
    side = round(len(weights) ** 0.5)
    row, column = divmod(int(weights.argmax()), side)
    share = f"{100 * weights.max():.0f} % (evenly spread: {100 / len(weights):.1f} %)"
    return f"most in row {row + 1}, column {column + 1} of {side} x {side}: {share}"


def _url(picture: np.ndarray) -> str:
    return jpeg_url(Image.fromarray(picture), quality=_QUALITY)


def failure(reason: str) -> str:
    """Why there are no captions."""
    return f'<p class="failed" role="alert">{escape(reason)}</p>'
