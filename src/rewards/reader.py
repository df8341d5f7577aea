"""A small text-only reader: answers multiple-choice questions from a caption alone.

It knows nothing of scenes: it looks up the question's words in the caption, looks around where it found them, and
compares what stands there with the options. What goes with what is learned (src/training/reader.py).

Letters: B captions, Q questions for each, R = B*Q rows (row = b*Q + q), L words of a caption, D width, H heads,
d = 2*D/H, V words.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from src.data.questions import Presentation, words_of
from src.models.layers import MASKED, Linear, merge_heads, split_heads
from src.runtime.errors import InputError
from src.runtime.files import whole_file

CAPTION_WORDS, QUESTION_WORDS, OPTION_WORDS = 28, 10, 2  # longer texts are cut; a caption has a start word as well
OPTIONS = 4  # of a question, without CANNOT
QUESTIONS = 8  # questions on one caption in a batch
PAD, UNKNOWN, START = 0, 1, 2
WORD_IDS = 3  # of words, from here on

_WIDTH, _HEADS = 64, 4
_LOOKUPS = 3  # of the whole question, its beginning and its end
_REACH = 3  # words on either side that a word is seen with
_OFFSET_SCALE = 10.0  # tables of offsets learn so many times as fast as other weights
_BATCH = 32  # captions of a batch when answering

_PRODUCT = ops.BatchMatMul()
_PRODUCT_WITH_TRANSPOSED = ops.BatchMatMul(transpose_b=True)
_SOFTMAX = ops.Softmax(-1)


class WordVectors(nn.Cell):
    """ids int32 [...] -> vectors [..., D], 0 for PAD. By a one-hot product: Gather's gradient is slow on CPU."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.table = Parameter(ops.zeros((words, _WIDTH), mstype.float32))
        self.is_word = Tensor(np.arange(words)[:, None] != PAD, mstype.float32)
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)

    def construct(self, ids: Tensor) -> Tensor:
        rows = self.one_hot(ids.reshape(-1), self.table.shape[0], self.on, self.off)
        return ops.matmul(rows, self.table * self.is_word).reshape(*ids.shape, _WIDTH)


class ReaderModel(nn.Cell):
    """Scores [R, OPTIONS + 1] of the options and, last, of CANNOT, from ids of captions, questions and options.

    Inputs, all int32: caption [B, L], question [B, Q, QUESTION_WORDS], options [B, Q, OPTIONS, OPTION_WORDS]. An
    option's score does not depend on its place.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        width = 2 * _WIDTH
        self.words = WordVectors(words)
        self.window = Linear((2 * _REACH + 1) * _WIDTH, _WIDTH)
        self.question = Linear(QUESTION_WORDS * _WIDTH, width)
        self.first_query, self.second_query = Linear(width, width), Linear(width, width)
        self.keys_values = Linear(width, 4 * width, has_bias=False)
        self.lookups = Parameter(Tensor(_lookups(), mstype.float32))  # weights of the question's words
        self.offsets = Parameter(ops.zeros(((_HEADS + _LOOKUPS) * _HEADS, 2 * CAPTION_WORDS - 1), mstype.float32))
        self.offset_places = Tensor(_offset_places(), mstype.float32)  # [2*L-1, L*L]
        self.summary = Linear(_WIDTH, width, has_bias=False)
        self.combine = Linear(3 * width + _WIDTH, width)
        self.answer, self.gate = Linear(width, _WIDTH), Linear(width, _WIDTH)
        self.cannot = Linear(width, 1)

    def construct(self, caption: Tensor, question: Tensor, options: Tensor) -> Tensor:
        captions, questions = question.shape[:2]
        rows = captions * questions
        words = self.words(caption)  # [B, L, D]
        near = ops.relu(self.window(_windows(words)))  # [B, L, D]
        first_key, first_value, second_key, second_value = (
            split_heads(part, _HEADS) for part in ops.chunk(self.keys_values(ops.concat((words, near), -1)), 4, -1)
        )
        padding = ops.cast(caption == PAD, mstype.float32).reshape(captions, 1, 1, -1) * MASKED
        asked_words = self.words(question).reshape(rows, QUESTION_WORDS * _WIDTH)
        asked = ops.relu(self.question(asked_words))  # [R, 2*D]
        bags = ops.matmul(self.lookups, asked_words.reshape(rows, QUESTION_WORDS, _WIDTH))  # [R, K, D]
        lookup = _PRODUCT_WITH_TRANSPOSED(bags.reshape(captions, questions * _LOOKUPS, _WIDTH), words)
        lookup = lookup.reshape(captions, questions, _LOOKUPS, -1).transpose(0, 2, 1, 3)  # [B, K, Q, L]
        first = self._scores(self.first_query(asked), first_key, captions)
        first = _SOFTMAX(ops.concat((lookup, first), 1) + padding)  # [B, K+H, Q, L]
        second = self._scores(self.second_query(asked), second_key, captions) + self._around(first)
        second = _SOFTMAX(second + padding)  # [B, H, Q, L]

        found = _PRODUCT(first[:, 0], words).reshape(rows, _WIDTH) * bags[:, 0]
        first = merge_heads(_PRODUCT(first[:, _LOOKUPS:], first_value)).reshape(rows, -1)
        read = _PRODUCT(second[:, 0], words).reshape(rows, _WIDTH)
        second = merge_heads(_PRODUCT(second, second_value)).reshape(rows, -1)
        whole = self.summary(_fold(near.reshape(captions, -1), CAPTION_WORDS) * 0.1).reshape(captions, 1, -1)
        combined = self.combine(ops.concat((first, second, asked, found), -1)).reshape(captions, questions, -1)
        combined = ops.relu(combined + whole).reshape(rows, -1)

        answer = self.answer(combined) + read * self.gate(asked)  # [R, D]
        options_words = self.words(options).reshape(rows * OPTIONS, OPTION_WORDS * _WIDTH)
        vectors = _fold(options_words, OPTION_WORDS).reshape(rows, OPTIONS, _WIDTH)
        scores = _PRODUCT(vectors, answer.reshape(rows, _WIDTH, 1)).reshape(rows, OPTIONS)
        absent = ops.cast(options[:, :, :, 0] == PAD, mstype.float32).reshape(rows, OPTIONS)
        return ops.concat((scores + absent * MASKED, self.cannot(combined)), -1)

    def _scores(self, query: Tensor, key: Tensor, captions: int) -> Tensor:
        """query [R, 2*D], key [B, H, L, d] -> [B, H, Q, L]."""
        query = split_heads(query.reshape(captions, -1, 2 * _WIDTH), _HEADS)
        return _PRODUCT_WITH_TRANSPOSED(query, key) * (query.shape[-1] ** -0.5)

    def _around(self, first: Tensor) -> Tensor:
        """What the second look [B, H, Q, L] gains at each word by its distance from where the first look went."""
        captions, heads, questions, length = first.shape
        table = ops.matmul(self.offsets * _OFFSET_SCALE, self.offset_places).reshape(heads, _HEADS, length, length)
        table = table.transpose(0, 2, 1, 3).reshape(heads * length, _HEADS * length)
        first = first.transpose(0, 2, 1, 3).reshape(captions * questions, heads * length)
        return ops.matmul(first, table).reshape(captions, questions, _HEADS, length).transpose(0, 2, 1, 3)


def _lookups() -> np.ndarray:
    """[K, QUESTION_WORDS]: 1 for the words of the whole question, of its first and of its second half."""
    late = np.arange(QUESTION_WORDS) >= QUESTION_WORDS // 2
    return np.array([late | ~late, ~late, late])


def _offset_places() -> np.ndarray:
    """[2*L-1, L*L]: 1 where place j is `offset - (L - 1)` words after place i; nowhere for the start word."""
    places = np.arange(CAPTION_WORDS)
    offset = places - places[:, None] + CAPTION_WORDS - 1  # [i, j]
    table = np.arange(2 * CAPTION_WORDS - 1)[:, None, None] == offset
    table[:, 0, :] = table[:, :, 0] = False
    return table.reshape(len(table), -1)


def _windows(words: Tensor) -> Tensor:
    """[B, L, D] -> [B, L, (2*_REACH+1)*D]: each word with its neighbours, 0 beyond the ends."""
    captions, length, width = words.shape
    margin = ops.zeros((captions, _REACH, width), mstype.float32)
    padded = ops.concat((margin, words, margin), 1)
    neighbours: tuple[Tensor, ...] = ()
    for shift in range(2 * _REACH + 1):
        neighbours += (padded[:, shift : shift + length],)
    return ops.concat(neighbours, -1)


def _fold(vectors: Tensor, count: int) -> Tensor:
    """[rows, count*D] -> their sum [rows, D], as a matrix product: MindSpore's CPU reductions are slow."""
    return ops.matmul(vectors, ops.tile(ops.eye(_WIDTH, _WIDTH, mstype.float32), (count, 1)))


class Vocabulary:
    """Words and their ids; other words are UNKNOWN."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.ids = {word: WORD_IDS + place for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        return WORD_IDS + len(self.words)

    def caption(self, text: str) -> list[int]:
        """[L], the start word first."""
        return [START, *self._encode(text, CAPTION_WORDS - 1)]

    def question(self, text: str) -> list[int]:
        """[QUESTION_WORDS]."""
        return self._encode(text, QUESTION_WORDS)

    def options(self, texts: Sequence[str]) -> list[list[int]]:
        """[OPTIONS, OPTION_WORDS] of options without CANNOT. Errors: InputError where there are too many."""
        if len(texts) > OPTIONS:
            raise InputError(f"the demo's reader takes {OPTIONS} options, not {len(texts)}: {', '.join(texts)}")
        return [self._encode(text, OPTION_WORDS) for text in texts] + [[PAD] * OPTION_WORDS] * (OPTIONS - len(texts))

    def _encode(self, text: str, length: int) -> list[int]:
        ids = [self.ids.get(word, UNKNOWN) for word in words_of(text)][:length]
        return ids + [PAD] * (length - len(ids))


class Reader:
    """A trained model with its vocabulary, as an answering model (src/data/questions.py)."""

    def __init__(self, vocabulary: Vocabulary, weights: Mapping[str, np.ndarray]) -> None:
        self.vocabulary = vocabulary
        self.model = ReaderModel(len(vocabulary)).set_train(False)
        for name, parameter in self.model.parameters_and_names():
            parameter.set_data(Tensor(weights[name]))

    def answer(self, presentations: Sequence[Presentation]) -> list[int]:
        """The index of the chosen option of each presentation. Those of one caption are answered together."""
        places: dict[str, list[int]] = {}
        for place, presentation in enumerate(presentations):
            places.setdefault(presentation.caption, []).append(place)
        groups = [rows[i : i + QUESTIONS] for rows in places.values() for i in range(0, len(rows), QUESTIONS)]
        chosen = [0] * len(presentations)
        for start in range(0, len(groups), _BATCH):
            batch = groups[start : start + _BATCH]
            scores = self._scores([[presentations[place] for place in group] for group in batch])
            for group, best in zip(batch, scores.argmax(-1)):
                for place, option in zip(group, best.tolist()):
                    last = len(presentations[place].options) - 1
                    chosen[place] = last if option == OPTIONS else option
        return chosen

    def _scores(self, groups: list[list[Presentation]]) -> np.ndarray:
        """[groups, QUESTIONS, OPTIONS + 1]; the batch is always of one size."""
        caption = np.full((_BATCH, CAPTION_WORDS), PAD, np.int32)
        caption[:, 0] = START
        question = np.full((_BATCH, QUESTIONS, QUESTION_WORDS), PAD, np.int32)
        options = np.full((_BATCH, QUESTIONS, OPTIONS, OPTION_WORDS), PAD, np.int32)
        for row, group in enumerate(groups):
            caption[row] = self.vocabulary.caption(group[0].caption)
            for column, presentation in enumerate(group):
                question[row, column] = self.vocabulary.question(presentation.question)
                options[row, column] = self.vocabulary.options(presentation.options[:-1])
        scores = self.model(Tensor(caption), Tensor(question), Tensor(options)).asnumpy()
        return scores.reshape(_BATCH, QUESTIONS, -1)

    def save(self, path: Path) -> None:
        """Write words and weights as safetensors. Errors: OSError."""
        weights = {name: value.asnumpy() for name, value in self.model.parameters_and_names()}
        with whole_file(path) as partial:
            save_file(weights, partial, metadata={"words": json.dumps(self.vocabulary.words)})


def load_reader(path: Path) -> Reader:
    """Read what `Reader.save` wrote. Errors: InputError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return Reader(Vocabulary(json.loads(file.metadata()["words"])), weights)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no reader ({error}); delete it, it is trained anew") from None
