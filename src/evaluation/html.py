"""The parts of report.html as text: tables, plots, the gallery. Everything that is not ours is escaped here.

src/evaluation/page holds the template, its style and its script; the page names no address and loads nothing.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from src.data.image_url import data_url
from src.evaluation.gallery import Picture, ScoredCaption

_PARTS = Path(__file__).parent / "page"
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
    style, script = ((_PARTS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    captions: list[ScoredCaption] = []
    cards = "\n".join(_card(picture, captions) for picture in pictures)  # fills `captions`
    looks = script_json([list(map(packed, caption.words, caption.looks)) for caption in captions])
    values = list(pictures[0].sort_values())
    gain = "gain" if _has_gains(pictures[0]) else "CIDEr"
    return Template((_PARTS / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        intro=escape(intro),
        tables="\n".join(map(render_table, tables)),
        curves="\n".join([*map(render_plot, plots), *map(render_table, histories)]) or "<p>Nothing was logged.</p>",
        selection=escape(selection(pictures, images)),
        first_down=f"Highest {gain} first",
        first_up=f"Lowest {gain} first",
        one_value=" hidden" if len(values) == 1 else "",
        kinds="".join(f'<option value="{kind}">{text}</option>' for kind, text in _CHOSEN.items()),
        values="".join(f"<option>{escape(label(system))}</option>" for system in values),
        cards=cards,
        looks=looks,
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def selection(pictures: Sequence[Picture], images: int) -> str:
    """How the pictures were chosen, in words."""
    count = Counter(picture.chosen for picture in pictures)
    others = [label(system) for system in pictures[0].captions if system != "ce"]
    mean = "mean of " if len(others) > 1 else ""
    gain = f"gain in CIDEr ({mean}{listed(others)} minus CE)" if _has_gains(pictures[0]) else "CIDEr"
    parts = f"the {count['highest']} with the highest and the {count['lowest']} with the lowest {gain}"
    if len(pictures) == images:
        return f"All {images} images of the split; {parts} are labelled so."
    return (
        f"{len(pictures)} of the {images:,} images of the split: {parts}, and {count['even']} evenly spaced among the "
        "others in the order of the data set. The highest and the lowest are no fair sample: see the scores."
    )


def _has_gains(picture: Picture) -> bool:
    return "ce" in picture.captions and len(picture.captions) > 1


def render_table(table: ReportTable) -> str:
    """A table that scrolls by itself where the window is narrow."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = ""
    for name, cells in table.rows.items():
        row = "".join(_cell(table, name, column, cell) for column, cell in zip(table.columns, cells))
        rows += f'<tr><th scope="row">{escape(name)}</th>{row}</tr>'
    title = escape(table.title)
    return (
        f'<figure><figcaption>{title}</figcaption><div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _cell(table: ReportTable, row: str, column: str, text: str) -> str:
    if (row, column) not in table.marked:
        return f"<td>{escape(text)}</td>"
    return f'<td class="marked"><strong>{escape(text)}</strong><span class="unseen"> ({escape(table.mark)})</span></td>'


def render_plot(plot: Plot) -> str:
    """A PNG file inside the page."""
    url = data_url("png", plot.path.read_bytes())
    return (
        f'<figure class="plot"><img src="{url}" alt="Plot of values that are in the tables">'
        f"<figcaption>{escape(plot.title)}</figcaption></figure>"
    )


def _card(picture: Picture, captions: list[ScoredCaption]) -> str:
    """One picture; its captions are added to `captions`, by whose places the script finds their attention."""
    values = " ".join(f"{value:.6g}" for value in picture.sort_values().values())
    truths = "".join(f"<li>{escape(text)}</li>" for text in picture.ground_truths)
    systems = "".join(_system(picture, system, captions) for system in picture.captions)
    return (
        f'<article class="card" data-chosen="{picture.chosen}" data-values="{values}"><div class="side">'
        f'<h3>{escape(picture.name)}</h3><p class="chosen">{_CHOSEN[picture.chosen]}</p>'
        f'<figure class="look"><div class="frame"><img src="{escape(picture.url)}" '
        f'alt="{escape(picture.ground_truths[0])}"></div><figcaption></figcaption></figure></div>'
        f'<div class="captions"><section><h4>Ground truths</h4><ul class="truths">{truths}</ul></section>'
        f"{systems}</div></article>"
    )


def _system(picture: Picture, system: str, captions: list[ScoredCaption]) -> str:
    greedy, *samples = picture.captions[system]
    gain = ""
    if _has_gains(picture) and system != "ce":
        change = 100 * (greedy.cider - picture.captions["ce"][0].cider)
        kind = "up" if change > 0 else "down" if change < 0 else "same"
        gain = f' <span class="gain {kind}">{change:+.1f}</span>'
    head = f'<h4>{escape(label(system))} <span class="score">CIDEr {100 * greedy.cider:.1f}</span>{gain}</h4>'
    lines = "".join(
        f'<li><span class="score">{100 * caption.cider:.1f}</span> {_words(caption, system, captions)}</li>'
        for caption in sorted(samples, key=lambda caption: -caption.cider)
    )
    scores = [100 * caption.cider for caption in samples]
    more = samples and (
        f"<details><summary>{len(samples)} samples: CIDEr {min(scores):.1f} to {max(scores):.1f}</summary>"
        f'<ul class="samples">{lines}</ul></details>'
    )
    return f'<section class="system">{head}<p>{_words(greedy, system, captions)}</p>{more or ""}</section>'


def _words(caption: ScoredCaption, system: str, captions: list[ScoredCaption]) -> str:
    captions.append(caption)
    text, name = escape(" ".join(caption.text.split())) or "(no word)", escape(f"Caption of {label(system)}")
    return f'<span class="words" data-caption="{len(captions) - 1}" data-label="{name}">{text}</span>'


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


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no text in it can end that."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
