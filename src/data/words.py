"""How captions become words: one place for ground truths, vocabulary, rewards, validation, diversity and metrics.

English (en), and every language with blanks between words: PTB tokens (src/data/ptb.py). Chinese (zh) has no blanks:
each Han character is a word, or jieba cuts runs of them; runs of other letters and digits stay whole; punctuation is
dropped. Text is NFKC-normalised first (full-width letters and digits become ordinary ones) and lower-cased.
"""

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from src.config.schema import DataConfig
from src.data.ptb import ptb_tokenize
from src.data.record import ImageId
from src.data.token_cache import cached_tokens
from src.runtime.errors import InputError

# Ranges of regular expressions, for Python's and for the `tokenizers` library's.
HAN = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = {
    "Chinese": HAN,
    "Japanese": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f",  # kana
    "Thai": "\u0e00-\u0e7f",
    "Lao": "\u0e80-\u0eff",
    "Tibetan": "\u0f00-\u0fff",
    "Burmese": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "Khmer": "\u1780-\u17ff",
    "Tai": "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf",
    "Balinese": "\u1b00-\u1b7f",
    "Javanese": "\ua980-\ua9df",
    "Yi": "\ua000-\ua4cf",
}
_SCRIPTS = {name: re.compile(rf"(?=[^\W\d_])[{letters}]") for name, letters in _UNSPACED.items()}
_ANY_SCRIPT = re.compile(f"[{''.join(_UNSPACED.values())}]")
_LETTER = re.compile(r"[^\W\d_]")
_RUN = 4  # letters between blanks: captions whose words are separated have fewer on average
_MANY = 0.1  # share of captions
_KANA = 0.3  # share of the letters without blanks that makes a caption Japanese

_HAN_RUN = re.compile(f"[{HAN}]+")
_WIDE = HAN + "\u3001-\u303f\uff01-\uff65"  # with Chinese punctuation
BLANK_BESIDE_HAN = f"(?<=[{_WIDE}]) | (?=[{_WIDE}])"
_SHOWN = re.compile(rf"[{HAN}]+|[{_WIDE}]|[^\s{_WIDE}]+")
_OTHER = rf"(?:(?![{HAN}_])[\w\u0300-\u036f])+"  # a letter may carry an accent of its own
_PIECE = re.compile(rf"[{HAN}]+|\d+(?:,\d+)+|{_OTHER}(?:[-'’.]{_OTHER})*")


@dataclass(frozen=True)
class Words:
    """How the captions of a data set become words.

    language: en | zh; name: what signatures call it. cut_han: the words of a run of Han characters; None: not zh.
    note: a line to say where this is not English, warning: a line where scores would compare whole captions, or "".
    """

    language: str
    name: str
    cut_han: Callable[[str], list[str]] | None = None
    note: str = ""
    warning: str = ""

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Written captions as words with blanks between. InputError if Java, which en needs, is missing or fails."""
        return ptb_tokenize(captions) if self.cut_han is None else [" ".join(self.split(row)) for row in captions]

    def tokenize_images(
        self, captions: Mapping[ImageId, Sequence[str]], cache_dir: Path | None = None
    ) -> dict[ImageId, list[str]]:
        """`tokenize` for the captions of each image id, in the same order; `cache_dir` keeps the result."""
        return cached_tokens(captions, self.tokenize, self.name, cache_dir)

    def split(self, caption: str) -> list[str]:
        """The words of a decoded caption. In English it has blanks between PTB tokens already, and no Java runs."""
        if self.cut_han is None:
            return caption.split()
        text = unicodedata.normalize("NFKC", caption).lower()
        # Punctuation goes before words are cut, so that a caption decoded without it is cut as its ground truth was.
        text = without_blanks(" ".join(_PIECE.findall(text)))
        return [word for piece in _PIECE.findall(text) for word in self._cut(piece)]

    def spaced(self, caption: str) -> str:
        """A decoded caption with blanks between its words, none of which is dropped: as people choose words in it."""
        if self.cut_han is None:
            return caption
        return " ".join(word for piece in _SHOWN.findall(caption) for word in self._cut(piece))

    def _cut(self, piece: str) -> list[str]:
        return self.cut_han(piece) if self.cut_han and _HAN_RUN.match(piece) else [piece]


ENGLISH = Words("en", "ptb")


def without_blanks(text: str) -> str:
    """Text as Chinese is written: no blank before or behind a Han character."""
    return re.sub(BLANK_BESIDE_HAN, "", text)


def choose_words(data: DataConfig, captions: Iterable[str]) -> Words:
    """What `data.language` and `data.segmentation` say about these captions; `auto` reads them.

    Errors: InputError where jieba is wanted and missing.
    """
    total, scripts, unspaced = count_scripts(captions)
    chinese = 2 * scripts["Chinese"] > total and scripts["Japanese"] <= _MANY * scripts["Chinese"]
    if data.language == "zh" or (data.language == "auto" and chinese):
        warning = _warning(total, unspaced - Counter({"Chinese": total}))
        return replace(build_chinese(data.segmentation), warning=warning)
    return Words("en", "ptb", warning=_warning(total, unspaced))


def build_chinese(segmentation: str) -> Words:
    """Words of Chinese: characters | jieba. Errors: InputError where jieba is missing."""
    cut, name = (_jieba(), f"jieba{version('jieba')}") if segmentation == "jieba" else (list, segmentation)
    kind = "Han characters" if segmentation == "characters" else f"cut by {name}"
    note = f"captions are Chinese (data.language): words are {kind} (data.segmentation), METEOR and SPICE are left out"
    return Words("zh", f"zh-{name}", cut, note)


def count_scripts(captions: Iterable[str]) -> tuple[int, Counter, Counter]:
    """The number of captions, of those mostly in each script without blanks, and of those of them that have none."""
    total, scripts, unspaced = 0, Counter[str](), Counter[str]()
    for caption in captions:
        total += 1
        caption = caption.replace("\u200b", " ")  # a blank of no width, which PTB takes for one
        if caption.isascii() or not _ANY_SCRIPT.search(caption):
            continue
        letters = {name: len(script.findall(caption)) for name, script in _SCRIPTS.items()}
        count = sum(letters.values())
        if 2 * count <= len(_LETTER.findall(caption)):
            continue
        name = "Japanese" if letters["Japanese"] > _KANA * count else max(letters, key=letters.__getitem__)
        scripts[name] += 1
        unspaced[name] += count >= _RUN * len(caption.split())
    return total, scripts, unspaced


def lost_letters(captions: Iterable[str], tokens: Iterable[str]) -> str:
    """A line to say where PTB's rules, made for English, drop letters or marks of many captions, or ""."""
    lost, total, example = 0, 0, ""
    for caption, line in zip(captions, tokens):
        total += 1
        if not caption.isascii() and _letters(line) < _letters(caption):
            lost, example = lost + 1, example or caption
    if lost <= _MANY * total:
        return ""
    return (
        f"warning: the PTB tokenizer drops letters of {lost:,} of {total:,} captions, such as {example[:40]!r}: "
        "vocabulary, scores and rewards are of what is left; transliterate the captions before training"
    )


def _letters(text: str) -> int:
    return sum(unicodedata.category(character)[0] in "LM" for character in unicodedata.normalize("NFC", text))


def _warning(total: int, unspaced: Counter) -> str:
    """What to say where many of `total` captions have no blanks between words; unspaced: how many by script."""
    count = unspaced.total()
    if count == 0 or count < _MANY * total:
        return ""
    names = " and ".join(name for name, _ in unspaced.most_common(2) if unspaced[name])
    remedy = "set data.language=zh" if names == "Chinese" else "put blanks between words before training"
    return (
        f"warning: {count:,} of {total:,} captions are written without blanks between words ({names}): BLEU, ROUGE-L, "
        f"CIDEr and the rewards compare whole captions and are 0 unless two are equal; {remedy}"
    )


@functools.cache
def _jieba() -> Callable[[str], list[str]]:
    try:
        import jieba
    except ImportError:
        raise InputError(
            f"data.segmentation=jieba needs the package jieba: run '{sys.executable} -m pip install -r "
            "scripts/extra_requirements.txt', or set data.segmentation=characters"
        ) from None
    cutter = jieba.Tokenizer()
    # What initialize() does, but for its cache: that is a file in /tmp, which anybody may have written.
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter.lcut
