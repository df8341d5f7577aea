"""Train the demo's reader on captions and questions of scenes that are in no split of the demo data.

python -m src.training.reader [--config configs/demo/grpo.yaml] [key=value ...]    # train, print its accuracy
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.runtime.environment import prepare_environment, run_program

if __name__ == "__main__":
    prepare_environment(convolutions=False)

import mindspore.common.dtype as mstype
import numpy as np
from mindspore import Tensor, nn, ops

from src.config.load import load_config
from src.config.schema import OptimizerConfig
from src.data.questions import CANNOT, words_of
from src.rewards.reader import OPTIONS, QUESTIONS, Reader, ReaderModel, Vocabulary, load_reader
from src.rewards.reader_examples import Example, held_out_examples, training_groups
from src.runtime.device import setup_device
from src.runtime.errors import RunStopped
from src.runtime.files import from_root, given_file, one_at_a_time
from src.runtime.progress import Progress
from src.runtime.rng import generator, permutation
from src.training.optim import build_optimizer, learning_rates
from src.training.step import build_step

_SOURCES = Path(__file__).parents[1]
REWARD, EXAMINER, HELD_OUT = range(3)  # split indices of the scenes: readers learn from others than they are tested on
_INITIAL = 99  # in place of a split index: random numbers of initial weights and orders
_SCENES = 3000
_STEPS = 600
_BATCH = 64  # captions of an update, with QUESTIONS questions on each
_MIN_COUNT = 3  # captions that a word must be in to be known
_OPTIMIZER = OptimizerConfig(
    lr=8e-3, final_lr=1e-4, warmup_ratio=0.05, decay_ratio=1.0, weight_decay=0.01, beta2=0.98, grad_clip=1.0
)


def cached_reader(folder: Path, seed: int, split_index: int) -> Reader:
    """The reader of these arguments: from `folder` where it was trained before, else trained and kept there.

    Errors: InputError where the file is damaged.
    """
    digest = hashlib.sha256(f"{seed} {split_index}".encode())
    for folder_name, pattern in (("demo", "*.py"), ("rewards", "reader*.py"), ("training", "reader.py")):
        for file in sorted((_SOURCES / folder_name).glob(pattern)):
            digest.update(file.read_bytes())
    path = folder / f"reader-{digest.hexdigest()[:16]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        if not path.is_file():
            train_reader(seed, split_index).save(path)
    return load_reader(path)


def train_reader(seed: int, split_index: int) -> Reader:
    """A reader trained on the scenes of `seed` and `split_index`; the same arguments give the same reader.

    Errors: RunStopped where the loss is not finite.
    """
    groups = list(training_groups(seed, split_index, _SCENES, QUESTIONS))
    vocabulary = build_vocabulary(groups)
    arrays = encode_groups(vocabulary, groups)
    reader = Reader(vocabulary, initial_weights(len(vocabulary), seed))
    rates = learning_rates(_OPTIMIZER, _STEPS)
    optimizer = build_optimizer(reader.model.trainable_params(), _OPTIMIZER, rates)
    loss = ReaderLossCell(reader.model)
    take_step = build_step(loss, optimizer, None, _OPTIMIZER.grad_clip, 1, 1, lambda name, cell: cell)
    for rows in Progress("reader", _STEPS, "step").over(_batches(seed, len(groups), _STEPS)):
        values = take_step(*(array[rows] for array in arrays))
    if not np.isfinite(values).all():
        raise RunStopped(f"the loss of the reader of seed {seed} is not finite; take another seed")
    return reader


class ReaderLossCell(nn.Cell):
    """Mean cross-entropy of the options that should be chosen, target int32 [B, Q]; OPTIONS stands for CANNOT."""

    def __init__(self, model: ReaderModel) -> None:
        super().__init__()
        self.model = model
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)

    def construct(self, caption: Tensor, question: Tensor, options: Tensor, target: Tensor) -> tuple[Tensor, tuple]:
        logprobs = ops.log_softmax(self.model(caption, question, options), -1)
        chosen = self.one_hot(target.reshape(-1), OPTIONS + 1, self.on, self.off)
        return -ops.reduce_sum(logprobs * chosen) / target.size, ()


def build_vocabulary(groups: Sequence[Sequence[Example]]) -> Vocabulary:
    """All words of questions and options, and those of captions that are no rare mistake."""
    counts = Counter(word for group in groups for word in words_of(group[0].caption))
    words = {word for word, count in counts.items() if count >= _MIN_COUNT}
    texts = {text for group in groups for item in group for text in (item.question.question, *item.question.options)}
    return Vocabulary(sorted(words.union(*map(words_of, texts))))


def encode_groups(vocabulary: Vocabulary, groups: Sequence[Sequence[Example]]) -> tuple[np.ndarray, ...]:
    """caption, question, options and target of ReaderLossCell, int32, one row a group."""
    questions, options, targets = [], [], []
    for group in groups:
        questions.append([vocabulary.question(example.question.question) for example in group])
        options.append([vocabulary.options(example.question.options) for example in group])
        targets.append([_index(example) for example in group])
    captions = [vocabulary.caption(group[0].caption) for group in groups]
    return tuple(np.array(array, np.int32) for array in (captions, questions, options, targets))


def _index(example: Example) -> int:
    return OPTIONS if example.target == CANNOT else example.question.options.index(example.target)


def initial_weights(words: int, seed: int) -> dict[str, np.ndarray]:
    """Xavier-uniform matrices, word vectors of deviation 0.3, offsets of 0.1; other vectors as the model has them."""
    rng = generator("reader", seed, _INITIAL)
    weights = {}
    for name, parameter in ReaderModel(words).parameters_and_names():
        value = parameter.asnumpy()
        if name in ("words.table", "offsets"):
            value = rng.normal(0.0, 0.3 if name == "words.table" else 0.1, value.shape)
        elif value.ndim == 2 and name != "lookups":
            bound = np.sqrt(6.0 / sum(value.shape))
            value = rng.uniform(-bound, bound, value.shape)
        weights[name] = value.astype(np.float32)
    weights["gate.bias"][:] = 1.0
    return weights


def _batches(seed: int, rows: int, steps: int) -> Iterator[np.ndarray]:
    """The rows of each update: all of them in random order, again and again; a rest that fills no batch is left out."""
    per_epoch = rows // _BATCH
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = permutation("reader", seed, (_INITIAL, 1 + epoch), rows)
        yield order[place * _BATCH : (place + 1) * _BATCH]


def accuracies(reader: Reader, examples: Sequence[Example]) -> dict[str, dict[str, list[bool]]]:
    """Hits by type of question, and by what the caption does: it "answers", is "silent", or "misleads".

    A caption misleads where what it says is not so; the reader is to believe it.
    """
    hits: dict[str, dict[str, list[bool]]] = {}
    chosen = reader.answer([example.presentation for example in examples])
    for example, place in zip(examples, chosen):
        case = "silent" if example.target == CANNOT else "misleads"
        if example.target == example.question.answer:
            case = "answers"
        of_type = hits.setdefault(example.question.type, {"answers": [], "silent": [], "misleads": []})
        of_type[case].append(example.presentation.options[place] == example.target)
    return hits


def main() -> None:
    """Train the reader that rewards, and print how it answers questions on scenes it has not seen."""
    parser = argparse.ArgumentParser(description="Train the demo's reader and print its accuracy on other scenes.")
    parser.add_argument("--config", type=given_file, default=Path(from_root("configs/demo/grpo.yaml")))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    setup_device(config)
    reader = cached_reader(config.cache_folder, config.demo.seed, REWARD)
    hits = accuracies(reader, list(held_out_examples(config.demo.seed, HELD_OUT, 500)))
    cases = ("answers", "silent", "misleads")
    hits["all"] = {case: [hit for of_type in hits.values() for hit in of_type[case]] for case in cases}
    print(f"{'caption':18}" + "".join(f"{case:>18}" for case in cases))
    for name, of_type in hits.items():
        cells = (f"{100 * np.mean(rows):.1f} of {len(rows)}" if rows else "-" for rows in of_type.values())
        print(f"{name:18}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    run_program(main)
