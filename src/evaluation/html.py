"""report.html from the Jinja2 templates in src/evaluation/page. The page names no address and loads nothing."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from src.data.image_url import data_url
from src.evaluation.gallery import Picture
from src.evaluation.templates import build_templates

_PAGE = Path(__file__).parent / "page"
# One sign for each of 64 levels of attention: no larger in JSON than a number, and none needs escaping.
_LEVELS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))
_CHOSEN = {"highest": "one of the highest", "lowest": "one of the lowest", "even": "evenly spaced"}


class ReportTable(NamedTuple):
    """A table of printed values: columns, rows by name, cells (row, column) that are marked, and what the mark says."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    marked: frozenset[tuple[str, str]] = frozenset()
    mark: str = "best"


class Plot(NamedTuple):
    """A PNG file, and what it shows."""

    path: Path
    title: str

    def url(self) -> str:
        """The file as a data: URL."""
        return data_url("png", self.path.read_bytes())


def render_page(
    title: str,
    intro: str,
    tables: Sequence[ReportTable],
    plots: Sequence[Plot],
    histories: Sequence[ReportTable],
    pictures: Sequence[Picture],
    images: int,
) -> str:
    """The whole page, whose style and script are named by their digests, so that the browser runs no other.

    histories: what the plots show, in numbers; images: of the split, from which the pictures were chosen.
    """
    style, script = (Markup((_PAGE / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    captions = [caption for picture in pictures for rows in picture.captions.values() for caption in rows]
    templates = build_templates(_PAGE)
    templates.filters |= {"label": label, "digest": _digest}
    return templates.get_template("page.html").render(
        title=title,
        intro=intro,
        tables=tables,
        plots=plots,
        histories=histories,
        pictures=pictures,
        selection=selection(pictures, images),
        systems=list(pictures[0].sort_values()),
        compared=len(pictures[0].captions) > 1,
        kinds=_CHOSEN,
        looks=[list(map(packed, caption.words, caption.looks)) for caption in captions],
        style=style,
        script=script,
    )


def selection(pictures: Sequence[Picture], images: int) -> str:
    """How the pictures were chosen, in words."""
    count = Counter(picture.chosen for picture in pictures)
    others = [label(system) for system in pictures[0].captions if system != "ce"]
    mean = "mean of " if len(others) > 1 else ""
    gain = f"gain in CIDEr ({mean}{listed(others)} minus CE)" if len(pictures[0].captions) > 1 else "CIDEr"
    parts = f"the {count['highest']} with the highest and the {count['lowest']} with the lowest {gain}"
    if len(pictures) == images:
        return f"All {images} images of the split; {parts} are labelled so."
    return (
        f"{len(pictures)} of the {images:,} images of the split: {parts}, and {count['even']} evenly spaced among the "
        "others in the order of the data set. The highest and the lowest are no fair sample: see the scores."
    )


def label(system: str) -> str:
    """A system's name for readers: scst_leave_one_out as SCST leave one out."""
    first, *rest = system.split("_")
    return " ".join([first.upper() if first in ("ce", "scst", "grpo") else first, *rest])


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: CE, SCST and GRPO."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def packed(word: str, weights: np.ndarray) -> list[float | str]:
    """A word and its attention [N]: the largest weight in percent, and all in 64 levels of it, a sign each."""
    largest = float(weights.max())
    levels = np.rint(weights * (63 / largest)).astype(int) if largest > 0 else np.zeros(len(weights), int)
    return [word, round(100 * largest, 1), "".join(_LEVELS[levels])]


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
