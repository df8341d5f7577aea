"""The reader: learns in a minute to answer from captions, and from captions alone."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data.questions import CANNOT, Presentation
from src.rewards.reader import OPTIONS, QUESTIONS, Reader, ReaderModel, Vocabulary, load_reader
from src.rewards.reader_examples import held_out_examples, training_groups
from src.runtime.errors import InputError
from src.training import reader as reader_training
from src.training.reader import (
    EXAMINER,
    HELD_OUT,
    REWARD,
    accuracies,
    build_vocabulary,
    cached_reader,
    encode_groups,
    initial_weights,
    train_reader,
)

COLOURS, SHAPES = "red yellow green blue purple white", "circle square triangle star ring heart"
TRICKS = {
    "a word repeated": "red " * 15,
    "a thing repeated": "a star " * 7,
    "a number repeated": "two " * 12,
    "praise": "this caption is perfect it is accurate complete and correct and it answers every question",
    "every colour": COLOURS,
    "every shape": "a " + SHAPES.replace(" ", " a "),
    "every number": "one two three four objects",
    "every colour of a shape": f"a {COLOURS} circle",
    "every place": "grass sky sand wood night noise",
    "every direction": "left of right of above below top left bottom right",
}


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    """As programs run; PyNative is ten times slower."""
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module")
def trained() -> Reader:
    return train_reader(1, REWARD)


@pytest.fixture(scope="module")
def examples():
    """Questions on captions of scenes that no reader learns from."""
    return list(held_out_examples(1, HELD_OUT, 200))


@pytest.fixture(scope="module")
def untrained() -> Reader:
    words = Vocabulary(["a", "blue", "circle", "color", "is", "red", "star", "the", "what"])
    return Reader(words, initial_weights(len(words), 0))


# ---- what it has learned ----


@pytest.mark.slow
def test_it_answers_what_captions_answer_and_nothing_else(trained, examples):
    hits = accuracies(trained, examples)
    answers, silent = ([hit for of_type in hits.values() for hit in of_type[case]] for case in ("answers", "silent"))
    assert len(answers) > 2000 and len(silent) > 2000
    assert np.mean(answers) >= 0.95
    assert np.mean(silent) >= 0.95
    for name in ("colour", "shape", "size", "texture", "count", "background"):
        assert np.mean(hits[name]["answers"]) > 0.9 and np.mean(hits[name]["silent"]) > 0.85, name


def test_accuracies_count_the_answer_of_every_example():
    """With a reader that always says CANNOT: right where the caption is silent, wrong elsewhere."""
    examples = list(held_out_examples(1, HELD_OUT, 5))
    silent = type("Silent", (), {"answer": lambda self, asked: [len(row.options) - 1 for row in asked]})()
    hits = accuracies(silent, examples)
    cases = {
        case: [hit for of_type in hits.values() for hit in of_type[case]] for case in ("answers", "silent", "misleads")
    }
    assert sum(map(len, cases.values())) == len(examples) and hits.keys() == {e.question.type for e in examples}
    assert len(cases["answers"]) == sum(e.target == e.question.answer for e in examples) > 20
    assert all(cases["silent"]) and len(cases["silent"]) > 20 and not any(cases["answers"])


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
def test_captions_that_describe_nothing_do_not_score(trained, examples, trick):
    """No better than chance, which is one of the options without CANNOT; by far, as nearly all get CANNOT."""
    questions = list({(e.question.image_id, e.question.question): e.question for e in examples}.values())
    asked = [Presentation(TRICKS[trick], question.question, (*question.options, CANNOT)) for question in questions]
    chosen = trained.answer(asked)
    right = [option == (*q.options, CANNOT).index(q.answer) for q, option in zip(questions, chosen)]
    chance = np.mean([1 / len(question.options) for question in questions])
    assert np.mean(right) < chance / 2


@pytest.mark.slow
def test_a_caption_of_another_picture_scores_no_better_than_chance(trained, examples):
    """What a reader may earn by ignoring the caption is bounded by what any caption earns on a strange picture."""
    captions = list(dict.fromkeys(example.caption for example in examples))
    strange = [captions[(place * 7919) % len(captions)] for place in range(len(examples))]
    asked = [Presentation(c, e.question.question, e.presentation.options) for c, e in zip(strange, examples)]
    right = [e.presentation.options[o] == e.question.answer for e, o in zip(examples, trained.answer(asked))]
    assert np.mean(right) < np.mean([1 / len(example.question.options) for example in examples])


# ---- answering ----


def test_the_order_of_options_and_of_presentations_does_not_matter(untrained):
    rng = np.random.default_rng(0)
    options = ("red", "blue", "star", "a circle")
    captions = [" ".join(rng.choice(untrained.vocabulary.words, 5)) for _ in range(40)]
    asked = [Presentation(c, "what color is the star", (*options, CANNOT)) for c in captions for _ in range(11)]
    chosen = [p.options[o] for p, o in zip(asked, untrained.answer(asked))]
    assert len(set(chosen)) > 2, "a model that always says the same would pass"
    orders = [rng.permutation(4) for _ in asked]
    shuffled = [
        Presentation(p.caption, p.question, (*(p.options[i] for i in o), CANNOT)) for p, o in zip(asked, orders)
    ]
    places = rng.permutation(len(asked))
    again = untrained.answer([shuffled[place] for place in places])
    assert [shuffled[place].options[o] for place, o in zip(places, again)] == [chosen[place] for place in places]


def test_fewer_options_than_there_is_room_for(untrained):
    captions = [" ".join(np.random.default_rng(seed).choice(untrained.vocabulary.words, 6)) for seed in range(60)]
    chosen = untrained.answer([Presentation(c, "what is the color", ("red", "blue", CANNOT)) for c in captions])
    assert set(chosen) == {0, 1, 2}
    assert untrained.answer([]) == []


def test_too_many_options_are_refused(untrained):
    options = (*"abcde", CANNOT)
    with pytest.raises(InputError, match="takes 4 options, not 5: a, b, c, d, e"):
        untrained.answer([Presentation("a star", "what", options)])


def test_words_beyond_the_length_and_unknown_words_are_no_error(untrained):
    caption = "star " * 100
    asked = [Presentation(text, "what " * 30, ("red " * 9, "Blue!", CANNOT)) for text in (caption, "", "?!", "xyzzy")]
    assert len(untrained.answer(asked)) == 4


def test_padding_changes_no_score(mode):
    """The scores of a question do not depend on those beside it, nor does PAD stand for a word."""
    rng = np.random.default_rng(0)
    model = ReaderModel(30).set_train(False)
    for name, value in initial_weights(30, 3).items():
        dict(model.parameters_and_names())[name].set_data(Tensor(value))
    caption = rng.integers(1, 30, (2, 28)).astype(np.int32)
    caption[:, 20:] = 0
    question = rng.integers(1, 30, (2, 3, 10)).astype(np.int32)
    options = rng.integers(1, 30, (2, 3, 4, 2)).astype(np.int32)
    options[0, 0, 2:] = 0
    scores = model(*map(Tensor, (caption, question, options))).asnumpy().reshape(2, 3, OPTIONS + 1)
    assert (scores[0, 0, 2:4] < -1e8).all() and (scores[1] > -1e3).all()
    alone = model(*map(Tensor, (caption[1:], question[1:, 1:2], options[1:, 1:2]))).asnumpy()
    np.testing.assert_allclose(alone[0], scores[1, 1], rtol=1e-4, atol=1e-4)
    model.words.table[0] = 7.0
    again = model(*map(Tensor, (caption, question, options))).asnumpy().reshape(2, 3, -1)
    np.testing.assert_allclose(again, scores, rtol=1e-5)


# ---- training ----


def test_the_same_seed_gives_the_same_reader(monkeypatch):
    monkeypatch.setattr(reader_training, "_SCENES", 60)
    monkeypatch.setattr(reader_training, "_STEPS", 2)
    first, again = (dict(train_reader(2, REWARD).model.parameters_and_names()) for _ in range(2))
    start = initial_weights(len(first["words.table"]), 2)
    for name, value in first.items():
        np.testing.assert_array_equal(value.asnumpy(), again[name].asnumpy())
        assert not np.array_equal(value.asnumpy(), start[name]), f"{name} is not trained"


def test_readers_learn_from_different_scenes():
    """Another seed or split has other scenes, and so have the questions that readers are tested on."""
    seen = set()
    for seed, split in ((1, REWARD), (1, EXAMINER), (2, REWARD)):
        captions = tuple(group[0].caption for group in training_groups(seed, split, 5, QUESTIONS))
        assert captions not in seen
        seen.add(captions)
        assert captions == tuple(group[0].caption for group in training_groups(seed, split, 5, QUESTIONS))


def test_groups_encode_to_the_option_that_should_be_chosen():
    groups = list(training_groups(4, REWARD, 40, QUESTIONS))
    vocabulary = build_vocabulary(groups)
    caption, question, options, target = encode_groups(vocabulary, groups)
    assert caption.shape == (len(groups), 28) and question.shape == (len(groups), QUESTIONS, 10)
    answered = 0
    for row, group in enumerate(groups):
        for column, example in enumerate(group):
            if target[row, column] == OPTIONS:
                assert example.target == CANNOT
            else:
                assert vocabulary.options([example.target])[0] == options[row, column, target[row, column]].tolist()
                answered += 1
    assert 0.3 < answered / target.size < 0.6
    assert len({example.question.image_id for group in groups for example in group}) == 40


def test_a_cached_reader_is_not_trained_again(tmp_path, monkeypatch, untrained):
    trainings = []
    monkeypatch.setattr(reader_training, "train_reader", lambda *key: trainings.append(key) or untrained)
    for _ in range(2):
        reader = cached_reader(tmp_path / "cache", 1, REWARD)
        assert reader.vocabulary.words == untrained.vocabulary.words
        for before, after in zip(untrained.model.get_parameters(), reader.model.get_parameters()):
            np.testing.assert_array_equal(before.asnumpy(), after.asnumpy())
    assert trainings == [(1, REWARD)]
    cached_reader(tmp_path / "cache", 2, REWARD)
    cached_reader(tmp_path / "cache", 1, EXAMINER)
    assert trainings[1:] == [(2, REWARD), (1, EXAMINER)]


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "reader.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: no reader .* delete it"):
        load_reader(path)
