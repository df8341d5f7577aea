"""Render report.html from the Jinja2 templates in src/evaluation/page. The page works offline: it loads nothing.

The gallery is imported for its types alone, so that programs that only need `build_templates` start quickly.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.data.image_url import data_url
from src.evaluation.report_tables import ReportTable

if TYPE_CHECKING:
    from src.evaluation.gallery import Gallery

_PAGE = Path(__file__).parent / "page"
# One sign for each of 64 levels of attention: as short in JSON as a digit, and never escaped.
_LEVELS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))


def build_templates(folder: Path) -> Environment:
    """Load the templates of a folder. They escape every value, reject undefined names, and may call zip."""
    loader = FileSystemLoader(folder)
    templates = Environment(autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True)
    templates.globals["zip"] = zip
    return templates


def render_page(
    title: str,
    intro: str,
    tables: Sequence[ReportTable],
    plots: Mapping[Path, str],
    histories: Sequence[ReportTable],
    gallery: "Gallery",
) -> str:
    """Render the page. Its Content-Security-Policy allows only our style and script, by digest.

    plots: captions by PNG file; histories: the plotted values.
    """
    style, script = ((_PAGE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    captions = [caption for picture in gallery.pictures for rows in picture.captions.values() for caption in rows]
    templates = build_templates(_PAGE)
    templates.filters |= {"label": label, "listed": listed, "digest": _digest}
    return templates.get_template("page.html").render(
        title=title,
        intro=intro,
        tables=tables,
        plots={data_url("png", path.read_bytes()): caption for path, caption in plots.items()},
        histories=histories,
        **gallery._asdict(),
        chosen=Counter(picture.chosen for picture in gallery.pictures),
        looks=[list(map(packed, caption.words, caption.looks)) for caption in captions],
        style=style,
        script=script,
    )


def label(system: str) -> str:
    """Spell the name of a system, or of a difference: grpo-scst_leave_one_out becomes GRPO minus SCST leave one out."""
    if "-" in system:
        return " minus ".join(map(label, system.split("-")))
    first, *rest = system.split("_")
    return " ".join([first.upper() if first in ("ce", "scst", "grpo") else first, *rest])


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence: CE, SCST and GRPO."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def packed(word: str, weights: np.ndarray) -> list[float | str]:
    """Pack a word and its attention [N]: the largest weight in percent, and 64 levels of it, one sign per weight."""
    largest = float(weights.max())
    levels = np.rint(weights * (63 / (largest or 1))).astype(int)
    return [word, round(100 * largest, 1), "".join(_LEVELS[levels])]


def _digest(text: str) -> str:
    """Digest an inline style or script for the Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
