"""Words or BERT word pieces behind one small interface over the `tokenizers` library.

V is the vocabulary size. Special tokens are ids that text can never produce: both kinds lower-case the text first,
so a caption that says "[EOS]" is just an unknown word.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from src.data.words import BLANK_BESIDE_HAN
from src.runtime.errors import InputError
from src.runtime.files import whole_file

# Names of PAD, UNK, BOS, EOS, by the library's model type.
_SPECIALS = {
    "WordLevel": ("[PAD]", "[UNK]", "[BOS]", "[EOS]"),
    "WordPiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
}


class TokenIds(NamedTuple):
    """The ids that a policy knows by name.

    pad fills a row behind its end; bos precedes every completion; each of eos ends one. allowed: bool [V], the ids that
    may be sampled.
    """

    pad: int
    bos: int
    eos: tuple[int, ...]
    allowed: np.ndarray


class Tokenizer:
    """Text to ids and back. Build it with one of the functions below.

    Attributes:
        vocab_size: V.
        pad_id, unk_id, bos_id, eos_id: ids of the special tokens.
        allowed: bool [V], the ids that the policy may produce: all but PAD, UNK, BOS, [MASK] and [unusedN].
        chinese: whether `decode` writes Chinese, without blanks beside Han characters.
        fingerprint: sha256 (hexadecimal) of the vocabulary in its order.
    """

    def __init__(self, library: tokenizers.Tokenizer, source: str) -> None:
        """`source` names the vocabulary in errors. Raises InputError if a special token is missing or ids have gaps."""
        self._library = library
        vocab = library.get_vocab()
        specials = _SPECIALS[type(library.model).__name__]
        missing = [token for token in specials if token not in vocab]
        if missing:
            raise InputError(f"{source}: {missing[0]} is missing from the vocabulary; take one made for this program")
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))):
            raise InputError(f"{source}: the ids of the vocabulary have gaps; take one made for this program")
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (vocab[token] for token in specials)
        self.allowed = np.array([not (t == "[MASK]" or t.startswith("[unused")) for t in tokens])  # [V]
        self.allowed[[self.pad_id, self.unk_id, self.bos_id]] = False
        self.chinese = isinstance(library.decoder, decoders.Sequence)
        self.fingerprint = hashlib.sha256("\n".join(tokens).encode()).hexdigest()

    @property
    def token_ids(self) -> TokenIds:
        """What a policy that speaks this vocabulary needs to know of it."""
        return TokenIds(self.pad_id, self.bos_id, (self.eos_id,), self.allowed)

    def encode(self, caption: str) -> list[int]:
        """Ids of the caption, without BOS and EOS."""
        return self._library.encode(caption, add_special_tokens=False).ids

    def words_of_tokens(self, caption: str) -> list[int]:
        """For each token of `encode(caption)` which word, between blanks, of the caption it belongs to.

        Of Chinese give `Words.spaced`.
        """
        encoding = self._library.encode(caption, add_special_tokens=False)
        return [len(caption[: start + 1].split()) - 1 for start, _ in encoding.offsets]

    def encode_targets(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """What teacher forcing has to predict.

        Args:
            captions: n captions.
            length: T, tokens per row.
        Returns:
            ids int32 [n, T]: the tokens, then EOS if there is room, then PAD. A caption of more than T tokens is cut.
            mask bool [n, T]: 1 where the id counts as a target: not for PAD, nor for what the policy cannot produce.
            The number of captions that were cut.
        """
        ids = np.full((len(captions), length), self.pad_id, np.int32)
        cut = 0
        for row, encoding in enumerate(self._library.encode_batch(list(captions), add_special_tokens=False)):
            tokens = encoding.ids
            cut += len(tokens) > length
            tokens = [*tokens, self.eos_id][:length]
            ids[row, : len(tokens)] = tokens
        return ids, self.allowed[ids], cut

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first EOS, without special tokens."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token not in (self.pad_id, self.unk_id, self.bos_id):
                kept.append(int(token))
        return self._library.decode(kept, skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write the library's JSON; a crash leaves the old file or the new one, never half."""
        with whole_file(path) as partial:
            partial.write_text(self._library.to_str(pretty=True), encoding="utf-8")


def decode_completions(
    tokenizer: Tokenizer, eos: Sequence[int], ids: np.ndarray, mask: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """The texts of completions int32 [M, T], and whether each ends in one of the ids `eos`, bool [M].

    mask [M, T]: above 0 for the tokens that were sampled, the end included.
    """
    ends = np.isin(ids, eos) & (mask > 0)
    kept = (mask > 0) & ~ends
    return [tokenizer.decode(row[keep]) for row, keep in zip(ids, kept)], ends.any(1)


def build_word_tokenizer(captions: Iterable[str], min_count: int, *, chinese: bool = False) -> Tokenizer:
    """Words that occur at least `min_count` times, by falling count, then alphabetically, from id 4 on.

    `captions` are tokenised: lower-case words with blanks between. Raises InputError if no word is left.
    """
    counts = Counter(word for caption in captions for word in caption.split())
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    if not words:
        raise InputError(f"tokenizer.min_count={min_count}: no word of the training captions occurs so often; lower it")
    specials = _SPECIALS["WordLevel"]
    vocab = {token: place for place, token in enumerate([*specials, *words])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=specials[1]))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if chinese:
        library.decoder = _chinese_decoder()
    return Tokenizer(library, "the training captions")


def build_wordpiece_tokenizer(vocab_file: Path, *, chinese: bool = False) -> Tokenizer:
    """BERT's lower-cased word pieces from a vocab.txt, one token per line; BOS is [CLS], EOS is [SEP].

    Raises InputError if the file is missing, not UTF-8, has a blank line, names a token twice or lacks a special one.
    """
    mend = "set tokenizer.vocab to an unchanged vocab.txt of BERT"
    try:
        tokens = vocab_file.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise InputError(f"{vocab_file}: no such vocabulary; {mend}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{vocab_file}: cannot be read ({error}); {mend}") from None
    vocab: dict[str, int] = {}
    for place, token in enumerate(token.removesuffix("\r") for token in tokens):
        if not token.strip() or token in vocab:
            raise InputError(f"{vocab_file}: line {place + 1} is blank or repeats a token ({token!r}); {mend}")
        vocab[token] = place
    unk = _SPECIALS["WordPiece"][1]
    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = _chinese_decoder() if chinese else decoders.WordPiece(prefix="##", cleanup=False)
    return Tokenizer(library, f"tokenizer.vocab={vocab_file}")


def _chinese_decoder() -> decoders.Decoder:
    """Words or pieces as Chinese is written; kept in tokenizer.json, so that whoever decodes need not know it."""
    joined = [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
    return decoders.Sequence([*joined, decoders.Replace(Regex(BLANK_BESIDE_HAN), "")])


def load_tokenizer(path: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote. Raises InputError if the file is missing, broken or of another kind."""
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer; it belongs to the run folder: train again, or copy it back")
    try:
        library = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception on broken JSON
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a tokenizer of this program ({reason}); copy it from the run again") from None
    if type(library.model).__name__ not in _SPECIALS:
        raise InputError(f"{path}: not a tokenizer of this program; copy it from the run again")
    return Tokenizer(library, str(path))
