"""Split captions into words, alike for ground truths, vocabulary, rewards, validation, diversity and metrics.

English (en), and every language with blanks between words: PTB tokens (src/data/ptb.py). Chinese (zh) has no blanks:
each Han character is a word, or jieba cuts runs of them; runs of other letters and digits stay whole; punctuation is
dropped. Text is NFKC-normalised first (full-width letters and digits become ordinary ones) and lower-cased.
"""

import contextlib
import functools
import hashlib
import json
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
from src.runtime.errors import InputError
from src.runtime.files import one_at_a_time, whole_file, writing

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
    """The rules that split the captions of a data set into words."""

    language: str  # en | zh
    name: str  # in signatures
    cut_han: Callable[[str], list[str]] | None = None  # cuts a run of Han characters into words; None: not zh
    note: str = ""  # a line to print if this is not English
    warning: str = ""  # a line to print if scores would compare whole captions
    natural: bool = False  # whether the policy writes captions as people do, with capitals and punctuation

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Put blanks between the words of written captions. Raises InputError if Java, which en needs, fails."""
        return ptb_tokenize(captions) if self.cut_han is None else [" ".join(self.split(row)) for row in captions]

    def tokenize_images(
        self, captions: Mapping[ImageId, Sequence[str]], cache_dir: Path | None = None
    ) -> dict[ImageId, list[str]]:
        """Tokenise the captions of each image id; `name` and a hash of the captions name the file in `cache_dir`.

        A damaged cache is rewritten. Raises InputError if it cannot be written.
        """
        if cache_dir is None:
            lines = iter(self.tokenize([caption for rows in captions.values() for caption in rows]))
            return {image_id: [next(lines) for _ in rows] for image_id, rows in captions.items()}
        source = json.dumps([version("pycocoevalcap"), [[image_id, list(rows)] for image_id, rows in captions.items()]])
        path = cache_dir / f"{self.name}-{hashlib.sha256(source.encode()).hexdigest()}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            cached = json.loads(path.read_text(encoding="utf-8"))
            if [[type(line) for line in rows] for rows in cached] == [[str] * len(rows) for rows in captions.values()]:
                return dict(zip(captions, cached, strict=True))
        tokenized = self.tokenize_images(captions)
        with writing(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(cache_dir), whole_file(path) as partial:
                partial.write_text(json.dumps(list(tokenized.values())), encoding="utf-8")
        return tokenized

    def split(self, caption: str) -> list[str]:
        """Return the words of a decoded caption. English has blanks between PTB tokens already, so no Java runs."""
        if self.cut_han is None:
            return caption.split()
        text = unicodedata.normalize("NFKC", caption).lower()
        # Punctuation goes before words are cut, so that a caption decoded without it is cut as its ground truth was.
        return self._cut(_PIECE.findall(without_blanks(" ".join(_PIECE.findall(text)))))

    def split_all(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the words of decoded captions; natural English ones are tokenised like ground truths, by Java."""
        if self.natural and self.cut_han is None:
            return [line.split(" ") if line else [] for line in ptb_tokenize(captions)]
        return [self.split(caption) for caption in captions]

    def spaced(self, caption: str) -> str:
        """Put blanks between the words of a decoded caption and drop none, so that people can choose words."""
        return caption if self.cut_han is None else " ".join(self._cut(_SHOWN.findall(caption)))

    def _cut(self, pieces: Iterable[str]) -> list[str]:
        han = self.cut_han or list
        return [word for piece in pieces for word in (han(piece) if _HAN_RUN.match(piece) else [piece])]


ENGLISH = Words("en", "ptb")


def without_blanks(text: str) -> str:
    """Remove the blanks beside Han characters, as Chinese is written."""
    return re.sub(BLANK_BESIDE_HAN, "", text)


def choose_words(data: DataConfig, captions: Iterable[str]) -> Words:
    """Choose by `data.language` and `data.segmentation`; `auto` reads the captions."""
    total, scripts, unspaced = count_scripts(captions)
    chinese = 2 * scripts["Chinese"] > total and scripts["Japanese"] <= _MANY * scripts["Chinese"]
    if data.language == "zh" or (data.language == "auto" and chinese):
        warning = _warning(total, unspaced - Counter({"Chinese": total}))
        return replace(build_chinese(data.segmentation), warning=warning)
    return replace(ENGLISH, warning=_warning(total, unspaced))


def build_chinese(segmentation: str) -> Words:
    """Build the words of Chinese: characters | jieba. Raises InputError if jieba is missing."""
    cut, name = (_jieba(), f"jieba{version('jieba')}") if segmentation == "jieba" else (list, segmentation)
    kind = "Han characters" if segmentation == "characters" else f"cut by {name}"
    note = f"captions are Chinese (data.language): words are {kind} (data.segmentation), METEOR and SPICE are left out"
    return Words("zh", f"zh-{name}", cut, note)


def count_scripts(captions: Iterable[str]) -> tuple[int, Counter, Counter]:
    """Count the captions, those mostly in each script without blanks, and those of them without any blanks."""
    total, scripts, unspaced = 0, Counter[str](), Counter[str]()
    for caption in captions:
        total += 1
        caption = caption.replace("\u200b", " ")  # a zero-width space, which PTB takes for a blank
        letters = {} if caption.isascii() else {name: len(found.findall(caption)) for name, found in _SCRIPTS.items()}
        count = sum(letters.values())
        if 2 * count <= len(_LETTER.findall(caption)):
            continue
        name = "Japanese" if letters["Japanese"] > _KANA * count else max(letters, key=letters.__getitem__)
        scripts[name] += 1
        unspaced[name] += count >= _RUN * len(caption.split())
    return total, scripts, unspaced


def lost_letters(captions: Iterable[str], tokens: Iterable[str]) -> str:
    """Return a warning if PTB's rules, made for English, drop letters or marks of many captions, else ""."""
    pairs = list(zip(captions, tokens))
    lost = [caption for caption, line in pairs if not caption.isascii() and _letters(line) < _letters(caption)]
    if len(lost) <= _MANY * len(pairs):
        return ""
    return (
        f"warning: the PTB tokenizer drops letters of {len(lost):,} of {len(pairs):,} captions, such as "
        f"{lost[0][:40]!r}: vocabulary, scores and rewards see only the rest; transliterate captions before training"
    )


def _letters(text: str) -> int:
    return sum(unicodedata.category(character)[0] in "LM" for character in unicodedata.normalize("NFC", text))


def _warning(total: int, unspaced: Counter) -> str:
    """Return a warning if many of `total` captions have no blanks between words; unspaced: how many by script."""
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
    # Like initialize(), but without its cache: a file in /tmp, which anybody may have written.
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter.lcut
