"""The CapRL reward with answering models of the test's own."""

import json

import numpy as np
import pytest
from tiny import ROOT

from src.config.load import load_config
from src.data.questions import CANNOT, Question, load_questions
from src.rewards import caprl
from src.rewards.caprl import CapRL, build_caprl
from src.rewards.completions import Completions
from src.runtime.errors import InputError

COLOR = Question(7, "what color is the ball", ("red", "blue", "green"), "red", "color")
PLACE = Question(7, "where is the ball", ("sand", "grass"), "grass", "place")
QUESTIONS = [[COLOR, PLACE], [COLOR]]


class Reader:
    """Chooses the option that stands in the caption, else CANNOT; None for captions in `fails`."""

    def __init__(self, fails=()):
        self.fails = fails
        self.asked = []

    def answer(self, presentations):
        self.asked.append(list(presentations))
        return [None if p.caption in self.fails else self.choose(p) for p in presentations]

    def choose(self, presentation):
        words = presentation.caption.split()
        named = [place for place, option in enumerate(presentation.options) if option in words]
        return named[0] if named else len(presentation.options) - 1


def completions(captions, first_row=0, rollout=0, images=None):
    rows = np.arange(first_row, first_row + len(captions))
    images = np.zeros(len(captions), int) if images is None else np.array(images)
    return Completions(rollout, rows, images, list(captions), np.ones(len(captions), bool))


def reward(reader, presentations=4, seed=1):
    return CapRL(QUESTIONS, reader, presentations=presentations, seed=seed)


def test_a_caption_is_worth_what_can_be_answered_from_it():
    captions = ["a red ball on grass", "a blue ball on sand", "a ball", "a red ball"]
    reader = Reader()
    rewards = reward(reader)(completions(captions))
    assert rewards[:3].tolist() == [1, 0, 0]  # all right; all wrong; all CANNOT
    drawn = [p for p in reader.asked[0] if p.caption == "a red ball"]
    assert 0 < len(drawn) <= 4 and {p.question for p in drawn} <= {COLOR.question, PLACE.question}
    # only the colour can be answered: the share of its draws, over many rows one half
    many = reward(Reader(), presentations=50)(completions(["a red ball"] * 40))
    assert abs(many.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000) and set(np.round(many * 50, 9) % 1) == {0}
    only = reward(Reader())(completions(["a red ball"], images=[1]))  # the other image has no other question
    assert only.tolist() == [1]


def test_every_presentation_shuffles_the_options_before_cannot():
    reader = Reader()
    reward(reader, presentations=300)(completions(["a ball"], images=[1]))
    (presentations,) = reader.asked  # each order once, for equal presentations are asked once
    assert sorted(p.options[:-1] for p in presentations) == sorted(
        (a, b, c) for a in COLOR.options for b in COLOR.options for c in COLOR.options if len({a, b, c}) == 3
    )
    assert {p.options[-1] for p in presentations} == {CANNOT}


def test_draws_depend_on_seed_rollout_and_row_but_not_on_the_workers():
    captions = [f"caption {row}" for row in range(8)]

    def presented(parts, **settings):
        reader = Reader()
        for first, size in parts:
            reward(reader, seed=settings.get("seed", 1))(
                completions(captions[first : first + size], first, settings.get("rollout", 0))
            )
        return [p for call in reader.asked for p in call]

    whole = presented([(0, 8)])
    assert presented([(0, 2), (2, 3), (5, 3)]) == whole == presented([(0, 8)])
    assert presented([(0, 8)], seed=2) != whole != presented([(0, 8)], rollout=1)
    shapes = [tuple((p.question, p.options) for p in whole if p.caption == caption) for caption in captions]
    assert len(set(shapes)) > 4  # rows have draws of their own


def test_a_failure_is_left_out_and_never_a_zero():
    class Forgetful(Reader):
        """Answers no question about the place."""

        def choose(self, presentation):
            return None if presentation.question == PLACE.question else super().choose(presentation)

    captions = ["a red ball on grass"] * 30
    scored = reward(Forgetful(), presentations=2)
    rewards = scored(completions(captions))
    lost = np.isnan(rewards)
    assert (rewards[~lost] == 1).all() and 0 < lost.sum() < 30  # one of two lost: the mean of the other
    failed, presented = scored.failures
    assert presented == 60 and 2 * lost.sum() < failed < 60
    assert np.isnan(reward(Reader(fails=captions))(completions(captions))).all()


def test_equal_presentations_are_asked_once_and_failures_again(monkeypatch):
    reader = Reader(fails=["lost"])
    scored = reward(reader, presentations=20)
    first = scored(completions(["a red ball", "lost"], images=[1, 1]))
    assert len(set(reader.asked[0])) == len(reader.asked[0]) <= 12  # 6 orders of each caption
    assert scored.failures.tolist() == [20, 40]  # presentations, not requests
    again = scored(completions(["a red ball", "lost"], images=[1, 1]))
    np.testing.assert_array_equal(first, again)
    assert {p.caption for p in reader.asked[1]} == {"lost"}
    monkeypatch.setattr(caprl, "CACHE_SIZE", 3)
    scored(completions(["a green ball"], images=[1]))
    assert len(scored._cache) == 3 and {p.caption for p in scored._cache} == {"a green ball"}


LINE = {"image_id": 7, "question": "what color", "options": ["red", "blue"], "answer": "red", "type": "color"}


def test_questions_are_read_by_image(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in (LINE, LINE | {"image_id": 8}, LINE | {"question": "why"})))
    questions = load_questions(path)
    assert {image_id: [q.question for q in rows] for image_id, rows in questions.items()} == {
        7: ["what color", "why"],
        8: ["what color"],
    }
    assert questions[8] == [Question(8, "what color", ("red", "blue"), "red", "color")]


@pytest.mark.parametrize(
    "text, words",
    [
        (None, ["no such file"]),
        ("", ["no question"]),
        ("{", ["line 1"]),
        ("[]", ["line 1"]),
        (json.dumps(LINE) + "\n" + json.dumps(LINE | {"image_id": [7]}), ["line 2", "image_id"]),
        (json.dumps(LINE | {"image_id": True}), ["image_id"]),
        (json.dumps(LINE | {"question": " "}), ["question"]),
        (json.dumps(LINE | {"options": ["red"]}), ["options"]),
        (json.dumps(LINE | {"options": ["red", "red"]}), ["option", "twice"]),
        (json.dumps(LINE | {"options": ["red", CANNOT]}), [CANNOT]),
        (json.dumps(LINE | {"answer": "green"}), ["green"]),
        (json.dumps(LINE | {"type": 3}), ["type"]),
    ],
)
def test_bad_questions_name_file_and_line(tmp_path, text, words):
    path = tmp_path / "questions.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as error:
        load_questions(path)
    assert all(word in str(error.value) for word in ["questions.jsonl", *words]), str(error.value)


def test_an_image_without_questions_gets_no_reward_and_counts_as_no_failure():
    reader = Reader()
    scored = CapRL([[COLOR], [], [COLOR]], reader, presentations=3, seed=1)
    rewards = scored(completions(["a red ball", "a red ball", "a blue ball", "a red ball"], images=[0, 1, 2, 1]))
    np.testing.assert_array_equal(rewards, [1, np.nan, 0, np.nan])
    assert scored.failures.tolist() == [0, 6]
    rewards = scored(completions(["a red ball"], images=[1]))
    assert np.isnan(rewards).tolist() == [True] and scored.failures.tolist() == [0, 0]


def test_questions_must_be_about_training_images(tmp_path, capsys):
    (tmp_path / "q_train.jsonl").write_text(json.dumps(LINE))
    config = load_config(
        ROOT / "configs/demo/grpo.yaml", [f"data.root={tmp_path}", "rewards.caprl=1", "caprl.questions=q_{split}.jsonl"]
    )
    assert [len(questions) for questions in build_caprl(config, [8, 7, 9], lambda: None).questions] == [0, 1, 0]
    assert "2 of 3 training images have no question" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"q_train.jsonl: no question is about a training image"):
        build_caprl(config, [8, 9], lambda: None)
