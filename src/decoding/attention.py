"""Where a policy looks in the image for each token of a completion.

Letters: B images, M rows, T tokens, N image tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor, nn

from src.data.tokenizer import Tokenizer
from src.models.policy import Policy


class Attention(nn.Cell):
    """The attention of given completions to their images.

    Inputs: inputs (pixels [B, 3, H, W] or features [B, N, C]), completion_ids int32 [M, T]. Returns float32 [M, T, N];
    rows sum to 1. Row t belongs to token t: its query comes from the preceding tokens, as in decoding.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def construct(self, inputs: Tensor, completion_ids: Tensor) -> Tensor:
        return self.policy.attention(self.policy.prefix(inputs), completion_ids)


def attend_words(
    attention: Callable[..., Tensor], tokenizer: Tokenizer, inputs: Tensor, captions: Sequence[str], tokens: int
) -> list[np.ndarray]:
    """Compute the attention of each word of M captions, float32 [words, N] per caption.

    attention, inputs: an Attention and its inputs; captions: words separated by blanks (`Words.spaced`); tokens: T.
    """
    ids, _, _ = tokenizer.encode_targets(captions, tokens)
    weights = zip(captions, attention(inputs, Tensor(ids)).asnumpy())  # M texts with [T, N]
    return [mean_by_word(rows, tokenizer.words_of_tokens(text), len(text.split())) for text, rows in weights]


def mean_by_word(weights: np.ndarray, word_of_token: Sequence[int], words: int) -> np.ndarray:
    """Average attention over the tokens of each word: [T, N] -> float32 [words, N].

    word_of_token: the index of the word that each token belongs to. Words whose tokens lie beyond T get zeros.
    """
    index = np.array(word_of_token[: len(weights)], int)
    member = (np.arange(words)[:, None] == index).astype(np.float32)  # [words, tokens]
    return member @ weights[: len(index)] / np.maximum(1, member.sum(1, keepdims=True))
