"""The demo's exact reading as an answering model: what tricks earn from it, and which questions it knows."""

import numpy as np
import pytest

from src.data.questions import CANNOT, Presentation, Question
from src.demo.reading import LEXICON, SceneReader, read_caption
from src.demo.scene_captions import write_captions
from src.demo.scene_questions import TYPES, askable, asked_by_text, choose_questions, write_question
from src.demo.scenes import describe_scene
from src.runtime.errors import InputError

COLOURS, SHAPES = "red yellow green blue purple white", "circle square triangle star ring heart"
EVERY = [f"a {colour} {shape}" for colour in COLOURS.split() for shape in SHAPES.split()]
TRICKS = {
    "nothing": "",
    "a word repeated": "red " * 15,
    "a thing repeated": "a star " * 7,
    "a thing described repeatedly": "a big red striped star " * 7,
    "a number repeated": "two " * 12,
    "praise": "this caption is perfect it is accurate complete and correct and it answers every question",
    "every colour": COLOURS,
    "every colour of one thing": f"a {COLOURS} object",
    "every shape": "a " + SHAPES.replace(" ", " a "),
    "every number": "one two three four objects",
    "every colour of a shape": f"a {COLOURS} circle",
    "every colour, a thing each": " and ".join(f"a {colour} circle" for colour in COLOURS.split()),
    "every shape, a colour each": " and ".join(f"a red {shape}" for shape in SHAPES.split()),
    "a colour for every shape": " and ".join(map("a {} {}".format, COLOURS.split(), SHAPES.split())),
    "every thing": " and ".join(EVERY),
    "every place": "grass sky sand wood night noise",
    "every direction": "left of right of above below top left bottom right",
    "every word": " ".join(LEXICON),
}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[dict, list[Question]]]:
    found = []
    for index in range(400):
        rng = np.random.default_rng(index)
        scene = describe_scene(rng, 96)
        found.append((scene, [write_question(item, index, rng) for item in choose_questions(scene, rng)]))
    return found


def right(caption: str, questions: list[Question]) -> list[bool]:
    asked = [Presentation(caption, q.question, (*q.options, CANNOT)) for q in questions]
    return [a.options[o] == q.answer for a, o, q in zip(asked, SceneReader().answer(asked), questions)]


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_earn_less_than_chance(scenes, trick):
    """Chance is one of the options without CANNOT. By far, since nearly all are answered with CANNOT."""
    questions = [question for _, asked in scenes for question in asked]
    chance = np.mean([1 / len(question.options) for question in questions])
    assert len(questions) > 2000 and np.mean(right(TRICKS[trick], questions)) < chance / 3


@pytest.mark.parametrize(
    ("trick", "kind"),
    [
        ("every colour of one thing", "colour"),
        ("every number", "count"),
        ("every colour of a shape", "colour"),
        ("every place", "background"),
        ("every thing", "colour"),
        ("every word", "background"),
    ],
)
def test_what_contradicts_itself_is_never_right(scenes, trick, kind):
    questions = [question for _, asked in scenes for question in asked if question.type == kind]
    assert len(questions) > 100 and not any(right(TRICKS[trick], questions))


def test_words_in_random_order_earn_no_more_than_chance(scenes):
    rng = np.random.default_rng(0)
    hits, chances = [], []
    for _, questions in scenes:
        words = rng.choice(list(LEXICON), int(rng.integers(3, 20)))
        hits += right(" ".join(words), questions)
        chances += [1 / len(question.options) for question in questions]
    assert np.mean(hits) < np.mean(chances)


def test_a_caption_of_another_scene_earns_no_more_than_chance(scenes):
    hits, chances = [], []
    for (scene, _), (_, questions) in zip(scenes, [*scenes[1:], scenes[0]]):
        for caption in write_captions(scene, np.random.default_rng(0), 3):
            hits += right(caption, questions)
            chances += [1 / len(question.options) for question in questions]
    assert np.mean(hits) < np.mean(chances)


def test_a_caption_of_the_scene_earns_what_it_says(scenes):
    hits = []
    for index, (scene, questions) in enumerate(scenes):
        for caption in write_captions(scene, np.random.default_rng(index), 3):
            hits += right(caption, questions)
    assert np.mean(hits) > 0.4  # one caption names few of the attributes that are asked for


def test_every_question_is_understood_as_it_was_meant(scenes):
    types = set()
    for scene, _ in scenes:
        rng = np.random.default_rng(0)
        for candidate in askable(scene):
            question = write_question(candidate, 0, rng)
            assert asked_by_text()[question.question] == candidate.asked
            types.add(question.type)
    assert types == set(TYPES)


def test_answers_in_any_order_of_options():
    asked = [
        Presentation("A red circle!", "What color is the circle?", options)
        for options in (("red", "blue", CANNOT), ("blue", "red", CANNOT), ("blue", "green", CANNOT))
    ]
    assert SceneReader().answer(asked) == [0, 1, 2]
    assert SceneReader().answer([]) == []
    assert read_caption("A red circle!").answer(asked_by_text()["what color is the circle"]) == "red"


def test_other_questions_are_refused():
    with pytest.raises(InputError, match=r"reader: 'How old is he\?' cannot be answered: .*caprl\.answerer=server"):
        SceneReader().answer([Presentation("a man", "How old is he?", ("old", "young", CANNOT))])
