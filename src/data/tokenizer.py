"""Words or BERT word pieces behind one small interface over the `tokenizers` library.

V is the vocabulary size. Special tokens are ids that text can never produce: both kinds lower-case the text first,
so a caption that says "[EOS]" is just an unknown word.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from src.data.words import BLANK_BESIDE_HAN
from src.runtime.errors import InputError, one_line
from src.runtime.files import read_text_lines, whole_file

# Names of PAD, UNK, BOS, EOS, by the library's model type.
_SPECIALS = {
    "WordLevel": ("[PAD]", "[UNK]", "[BOS]", "[EOS]"),
    "WordPiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
}


class TokenIds(NamedTuple):
    """The ids that a policy knows by name."""

    pad: int  # fills a row behind its end
    bos: int  # precedes every completion; of a language model, the last token of the prompt
    eos: tuple[int, ...]  # each ends a completion
    allowed: np.ndarray  # bool [V], the ids that may be sampled
    before: tuple[int, ...] = ()  # of a language model's prompt: what precedes the image
    after: tuple[int, ...] = ()  # ... and what follows it, without `bos`


class Tokenizer:
    """Text to ids and back. Build it with one of the functions below.

    Attributes:
        vocab_size: V.
        pad_id, unk_id, bos_id, eos_id: ids of the special tokens.
        allowed: bool [V], the ids that the policy may produce: all but PAD, UNK, BOS, [MASK] and [unusedN].
        token_ids: the same for a policy.
        chinese: whether `decode` writes Chinese, without blanks beside Han characters.
        fingerprint: sha256 (hexadecimal) of the vocabulary in its order.
    """

    def __init__(self, library: tokenizers.Tokenizer, source: str) -> None:
        """`source` names the vocabulary in errors. Raises InputError if a special token is missing or ids have gaps."""
        self._library = library
        vocab = library.get_vocab()
        specials = _SPECIALS[type(library.model).__name__]
        missing = [f"{token} is missing from the vocabulary" for token in specials if token not in vocab]
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))):
            missing.append("the ids of the vocabulary have gaps")
        if missing:
            raise InputError(f"{source}: {missing[0]}; use a vocabulary made for this program")
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (vocab[token] for token in specials)
        self.allowed = np.array([not (t == "[MASK]" or t.startswith("[unused")) for t in tokens])  # [V]
        self.allowed[[self.pad_id, self.unk_id, self.bos_id]] = False
        self.token_ids = TokenIds(self.pad_id, self.bos_id, (self.eos_id,), self.allowed)
        self.chinese = isinstance(library.decoder, decoders.Sequence)
        self.fingerprint = hashlib.sha256("\n".join(tokens).encode()).hexdigest()

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption, without BOS and EOS."""
        return self._library.encode(caption, add_special_tokens=False).ids

    def words_of_tokens(self, caption: str) -> list[int]:
        """Return which word, between blanks, each token of `encode` belongs to; use `Words.spaced` first on Chinese."""
        encoding = self._library.encode(caption, add_special_tokens=False)
        return [len(caption[: start + 1].split()) - 1 for start, _ in encoding.offsets]

    def encode_targets(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the targets of teacher forcing: ids int32 [n, T], mask bool [n, T], and how many captions were cut.

        T is `length`. A row has tokens, then EOS if there is room, then PAD; a caption of more than T tokens is cut.
        The mask is 0 for PAD and for what the policy cannot produce.
        """
        ids = np.full((len(captions), length), self.pad_id, np.int32)
        rows = [encoding.ids for encoding in self._library.encode_batch(list(captions), add_special_tokens=False)]
        for place, row in enumerate(rows):
            tokens = [*row, self.eos_id][:length]
            ids[place, : len(tokens)] = tokens
        return ids, self.allowed[ids], sum(len(row) > length for row in rows)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first EOS, without special tokens."""
        specials = (self.pad_id, self.unk_id, self.bos_id)
        kept = [int(token) for token in takewhile(lambda token: token != self.eos_id, ids) if token not in specials]
        return self._library.decode(kept, skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write the library's JSON; a crash leaves the old file or the new one, never half."""
        with whole_file(path) as partial:
            partial.write_text(self._library.to_str(pretty=True), encoding="utf-8")


def decode_completions(
    tokenizer: Tokenizer, eos: Sequence[int], ids: np.ndarray, mask: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return the texts of completions int32 [M, T], and whether each ends in one of the ids `eos`, bool [M].

    mask [M, T]: above 0 for the tokens that were sampled, the end included.
    """
    ends = np.isin(ids, eos) & (mask > 0)
    kept = (mask > 0) & ~ends
    return [tokenizer.decode(row[keep]) for row, keep in zip(ids, kept)], ends.any(1)


def build_word_tokenizer(captions: Iterable[str], min_count: int, *, chinese: bool = False) -> Tokenizer:
    """Number the words that occur at least `min_count` times, by falling count, then alphabetically, from id 4 on.

    `captions` are tokenised: lower-case words with blanks between. Raises InputError if no word is left.
    """
    counts = Counter(word for caption in captions for word in caption.split())
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    if not words:
        raise InputError(f"tokenizer.min_count={min_count}: no training word occurs that often; lower it")
    specials = _SPECIALS["WordLevel"]
    vocab = {token: place for place, token in enumerate([*specials, *words])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=specials[1]))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if chinese:
        library.decoder = _chinese_decoder()
    return Tokenizer(library, "the training captions")


def build_wordpiece_tokenizer(vocab_file: Path, *, chinese: bool = False) -> Tokenizer:
    """Load BERT's lower-cased word pieces from a vocab.txt, one token per line; BOS is [CLS], EOS is [SEP]."""
    fix = "set tokenizer.vocab to an unchanged vocab.txt of BERT"
    lines = read_text_lines(vocab_file, f"no such vocabulary; {fix}", fix)
    vocab: dict[str, int] = {}
    for place, token in enumerate(lines[:-1] if len(lines) > 1 and not lines[-1] else lines):
        if not token.strip() or token in vocab:
            raise InputError(f"{vocab_file}: line {place + 1} is blank or repeats a token ({token!r}); {fix}")
        vocab[token] = place
    unk = _SPECIALS["WordPiece"][1]
    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = _chinese_decoder() if chinese else decoders.WordPiece(prefix="##", cleanup=False)
    return Tokenizer(library, f"tokenizer.vocab={vocab_file}")


def _chinese_decoder() -> decoders.Decoder:
    """Join words or pieces as Chinese is written; tokenizer.json keeps this, so that readers need not know it."""
    joined = [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
    return decoders.Sequence([*joined, decoders.Replace(Regex(BLANK_BESIDE_HAN), "")])


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the file of `Tokenizer.save`. Raises InputError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer; restore it from the run folder, or train again")
    try:
        library = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        _SPECIALS[type(library.model).__name__]
    except Exception as error:  # the library raises bare Exception on broken JSON
        raise InputError(f"{path}: not a tokenizer of this program ({one_line(error)}); copy it again") from None
    return Tokenizer(library, str(path))
