"""A policy as unlike the captioner as the interface allows: its cache is written in place, one compiled step is called
for each token, two tokens end a completion, and one dropout site lies on the image.

As a program: `toy_policy.py train|eval ...` is train.py or eval.py with this policy in place of the captioner.
Letters: B images, M rows, T tokens, N image tokens, C channels, D width, V vocabulary.
"""

import sys
from copy import deepcopy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from src.runtime.environment import prepare_environment, run_program  # noqa: E402

if __name__ == "__main__":
    prepare_environment(convolutions=True)

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Parameter, Tensor, ops  # noqa: E402

from src.models.policy import Policy  # noqa: E402

ROWS, WIDTH = 512, 8  # of the cache: the rows of any generation or fewer


class ToyPolicy(Policy):
    """hidden[t] = tanh(image + the decayed sum of the embeddings of BOS and the tokens before t)."""

    unrolled = False

    def __init__(self, encoder, channels, token_ids, *, cached, dropout=0.0):
        super().__init__()
        self.encoder, self.cached, self.width = encoder, cached, WIDTH
        self.token_ids, self.bos_id = token_ids, token_ids.bos
        self.dropout_sites = (dropout,) if dropout else ()
        vocab = len(token_ids.allowed)
        rng = np.random.default_rng(1)
        self.embedding = Parameter(Tensor(rng.normal(0, 1, (vocab, WIDTH)), ms.float32), name="embedding")
        self.image = Parameter(Tensor(rng.normal(0, 1, (channels, WIDTH)), ms.float32), name="image")
        self.output = Parameter(Tensor(rng.normal(0, 0.7, (WIDTH, vocab)), ms.float32), name="output")
        self.forbidden = Tensor(np.where(token_ids.allowed, 0.0, -1e9), ms.float32)
        self.total = Parameter(Tensor(np.zeros((ROWS, WIDTH)), ms.float32), name="total", requires_grad=False)

    def prefix(self, inputs):
        features = ops.cast(inputs if self.cached else self.encoder(inputs), ms.float32)
        return ops.matmul(features, self.image)  # [B, N, D]

    def _images(self, prefix, rows):
        return ops.repeat_elements(ops.mean(prefix, 1), rows // prefix.shape[0], 0)  # [M, D]

    def hidden(self, prefix, completion_ids, keep=None):
        rows, tokens = completion_ids.shape
        start = ops.full((rows, 1), self.bos_id, dtype=ms.int32)
        embedded = ops.gather(self.embedding, ops.concat((start, completion_ids[:, :-1]), 1), 0)  # [M, T, D]
        image = ops.expand_dims(self._images(prefix, rows), 1)
        if keep is not None:
            image = image * keep[0]
        age = np.arange(tokens)[:, None] - np.arange(tokens)
        decay = Tensor(np.where(age >= 0, 0.5 ** np.maximum(age, 0), 0.0), ms.float32)  # [T, T]
        return ops.tanh(image + ops.matmul(decay, embedded))

    def start(self, prefix, rows):
        return (ops.assign(self.total, ops.zeros_like(self.total))[:1, :1],)  # a token of it: the cache is `total`

    def step(self, token, position, prefix, cache):
        rows = token.shape[0]
        total = 0.5 * self.total[:rows] + ops.gather(self.embedding, token, 0)
        hidden = ops.tanh(self._images(prefix, rows) + total)
        return ops.depend(hidden, self._write(total)), cache

    def _write(self, total):
        return ops.assign(self.total, ops.concat((total, self.total[total.shape[0] :]), 0))

    def logits(self, hidden):
        return ops.matmul(hidden, self.output) + self.forbidden

    def reorder(self, cache, parents):
        moved = self._write(ops.gather(self.total, parents, 0))
        return (ops.depend(cache[0], moved),)

    def attention(self, prefix, completion_ids):
        hidden = self.hidden(prefix, completion_ids)
        images, count = prefix.shape[0], prefix.shape[1]
        scores = ops.matmul(hidden.reshape(images, -1, WIDTH), prefix.transpose(0, 2, 1))
        return ops.softmax(scores, -1).reshape(*completion_ids.shape, count)

    def reference(self):
        return deepcopy(self)

    def trained_parameters(self):
        return [self.embedding, self.image, self.output]

    def saved_parameters(self):
        """The cache is no weight, and the encoder is built from the seed."""
        return {parameter.name.split(".")[-1]: parameter for parameter in self.trained_parameters()}


def build_toy(config, token_ids, *, cached, load=False):
    """In place of build_captioner; the last id of the vocabulary, a rare word, ends a completion too."""
    from src.models.encoders.build import build_encoder

    encoder = build_encoder("cnn", variant="cnn", checkpoint=None, image_size=config.data.image_size)
    token_ids = token_ids._replace(eos=(*token_ids.eos, len(token_ids.allowed) - 1))
    policy = ToyPolicy(encoder, encoder.channels, token_ids, cached=cached, dropout=config.decoder.dropout)
    return policy.set_train(False)


if __name__ == "__main__":
    import eval as evaluation
    import src.models.build
    import train

    src.models.build.build_captioner = build_toy
    run_program({"train": train.main, "eval": evaluation.main}[sys.argv.pop(1)])
