"""Questions: files that say what is wrong, questions with one answer, options that give nothing away, exact reading."""

import json
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from src.data.questions import CANNOT, Question, load_questions, present, write_questions
from src.demo.reading import read_caption
from src.demo.scene_captions import write_captions
from src.demo.scene_questions import (
    MIN_QUESTIONS,
    TYPES,
    Asked,
    Referent,
    choose_questions,
    draw_options,
    option_odds,
    write_question,
)
from src.demo.scenes import OBJECT_COUNTS, describe_scene
from src.runtime.errors import InputError
from src.runtime.rng import generator

GOOD = {"image_id": 3, "question": "what color is the star", "options": ["red", "blue"], "answer": "blue"}


@pytest.fixture(scope="module")
def asked() -> list[tuple[dict, list[tuple[Asked, Question]]]]:
    """1,500 scenes, and what is asked of each."""
    scenes = []
    for index in range(1500):
        rng = generator("questions", 5, index)
        scene = describe_scene(rng, 96)
        scenes.append(
            (scene, [(item.asked, write_question(item, index, rng)) for item in choose_questions(scene, rng)])
        )
    return scenes


# ---- files ----


def test_files_return_what_was_written(tmp_path):
    questions = [Question(3, "wörter?", ("a", "b", "c"), "b", "colour"), Question(4, "what", ("no", "yes"), "no")]
    write_questions(tmp_path / "questions.jsonl", questions)
    assert load_questions(tmp_path / "questions.jsonl") == {3: questions[:1], 4: questions[1:]}


def test_a_type_may_be_missing_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n")
    assert load_questions(path) == {3: [Question(3, "what color is the star", ("red", "blue"), "blue", "other")]}


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        (GOOD | {"image_id": 3.0}, "image_id is 3.0"),
        (GOOD | {"image_id": True}, "image_id is True"),
        (GOOD | {"question": " "}, "question is ' '"),
        (GOOD | {"type": 3}, "type is 3"),
        (GOOD | {"options": ["blue"]}, "options is .* two or more texts"),
        (GOOD | {"options": "blue"}, "options is 'blue'"),
        (GOOD | {"options": ["blue", "blue"]}, "occurs twice"),
        (GOOD | {"options": ["blue", CANNOT]}, "always appended"),
        (GOOD | {"answer": "green"}, "answer 'green' is none of the options"),
        (GOOD | {"answers": "blue"}, "unknown key 'answers'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(InputError, match=f"questions.jsonl: line 2.*{reason}"):
        load_questions(path)


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff"])
def test_a_missing_or_empty_file_is_named(tmp_path, content):
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"questions\.jsonl"):
        load_questions(path)


def test_line_separators_within_texts_and_a_mark_at_the_start(tmp_path):
    """As Windows' editors write a file, and JSON without escapes: U+2028 and its like end no line."""
    lines = [GOOD | {"question": f"a{separator}b"} for separator in "\u2028\u2029\x85\u00a0"]
    lines.append(GOOD | {"image_id": "1.jpg"})
    path = tmp_path / "questions.jsonl"
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        questions = load_questions(path)
        assert [len(rows) for rows in questions.values()] == [4, 1] and list(questions)[1] == "1.jpg"
        assert questions[GOOD["image_id"]][0].question == "a\u2028b"


def test_a_presentation_shuffles_the_options_and_appends_the_last():
    question = Question(1, "what color", ("red", "green", "blue"), "green")
    presentation, answer = present(question, "a blue star", (2, 0, 1))
    assert presentation.options == ("blue", "red", "green", CANNOT)
    assert answer == 2
    assert (presentation.caption, presentation.question) == ("a blue star", "what color")


# ---- questions about scenes ----


def test_every_scene_has_enough_questions_of_every_type(asked):
    counts = Counter(question.type for _, pairs in asked for _, question in pairs)
    assert set(counts) == set(TYPES)
    for _, pairs in asked:
        assert len(pairs) >= MIN_QUESTIONS
        assert len({question.question for _, question in pairs}) == len(pairs), "a question is asked twice"
        for _, question in pairs:
            assert question.answer in question.options and len(set(question.options)) == len(question.options)


def test_the_picture_leaves_one_answer(asked):
    """Answers found anew from the objects: all that a question is about agree, and have the answer."""
    for scene, pairs in asked:
        objects = scene["objects"]
        for wanted, question in pairs:
            about = [item for item in objects if wanted.about and item[wanted.about.attribute] == wanted.about.value]
            if wanted.type in ("colour", "shape", "size", "texture"):
                assert {item[wanted.type] for item in about} == {question.answer}
            elif wanted.type == "relation":
                (first,) = about
                (second,) = (item for item in objects if item[wanted.other.attribute] == wanted.other.value)
                dx, dy = first["x"] - second["x"], first["y"] - second["y"]
                sign = {"left": -dx, "right": dx, "above": -dy, "below": dy}[question.answer]
                assert sign > 0 and sign == max(abs(dx), abs(dy))
            elif wanted.type in ("corner", "side"):
                (item,) = about
                x, y = item["x"], item["y"]
                for word, distance in {"left": x, "right": 96 - x, "top": y, "bottom": 96 - y}.items():
                    assert (distance < 32) == (word in question.answer)
            elif wanted.type == "count":
                assert question.answer == ("one", "two", "three")[len(objects) - 1]
            else:
                assert question.answer == scene["background"]["kind" if wanted.type == "background" else "colour"]


def test_a_blind_guesser_is_at_chance():
    """Whoever knows how often each answer is right, by type and options, gains nothing on questions he has not seen."""
    right = defaultdict(Counter)
    hits, chances = defaultdict(list), defaultdict(list)
    for index in range(4500):
        rng = generator("questions", 6, index)
        scene = describe_scene(rng, 96)
        for item in choose_questions(scene, rng):
            question = write_question(item, index, rng)
            known = right[question.type, frozenset(question.options)]
            if index < 3000:
                known[question.answer] += 1
            else:
                guess = known.most_common(1)[0][0] if known else question.options[0]
                hits[question.type].append(guess == question.answer)
                chances[question.type].append(1 / len(question.options))
    for name in TYPES:
        chance = np.mean(chances[name])
        noise = 3 * np.sqrt(chance * (1 - chance) / len(hits[name]))
        assert np.mean(hits[name]) < chance + noise, name


def test_options_of_a_rare_answer_are_as_often_right():
    """Exactly, from the odds: of the sets that hold an answer it is right in 1/k, and in all as often as in scenes."""
    odds = option_odds("count")
    sets = {pair: odds[pair[0]] * odds[pair[1]] for pair in combinations(odds, 2)}
    total = sum(sets.values())
    for answer, share in zip(odds, OBJECT_COUNTS.values()):
        held = sum(weight for pair, weight in sets.items() if answer in pair) / total
        assert held / 2 == pytest.approx(share, rel=1e-6)
    rng = np.random.default_rng(0)
    drawn = Counter(frozenset(draw_options("count", "three", rng)) for _ in range(4000))
    wanted = odds["two"] / (odds["one"] + odds["two"])
    assert drawn[frozenset(("two", "three"))] / 4000 == pytest.approx(wanted, abs=0.03)


# ---- what captions say ----

STAR, RED = Referent("shape", "star"), Referent("colour", "red")
CIRCLE = Referent("shape", "circle")


@pytest.mark.parametrize(
    "caption, asked, answer",
    [
        ("A red circle and a blue star.", Asked("colour", STAR), "blue"),
        ("a red circle and a star", Asked("colour", STAR), None),
        ("a red shape on the grass", Asked("colour", STAR), "red"),  # the one thing there is
        ("a red circle", Asked("colour", STAR), None),
        ("a crimson ball", Asked("shape", RED), "circle"),
        ("a red round shape", Asked("shape", RED), None),  # ring or circle
        ("a small violet star shape with dots", Asked("texture", STAR), "dotted"),
        ("a patterned star", Asked("texture", STAR), None),
        ("a red star and a blue star", Asked("colour", STAR), None),
        ("a red yellow star", Asked("colour", STAR), None),
        ("a tiny red polka dot star", Asked("size", RED), "small"),
        ("a stripped red star", Asked("texture", STAR), None),  # mistyped
        ("a star to the left of a red circle", Asked("relation", STAR, CIRCLE), "left"),
        ("a star to the left of a red circle", Asked("relation", RED, STAR), "right"),
        ("a star that is under a red circle", Asked("relation", CIRCLE, STAR), "above"),
        ("a star next to a red circle", Asked("relation", STAR, CIRCLE), None),
        ("a star and a red circle", Asked("relation", STAR, CIRCLE), None),
        ("a red circle above a square, a star", Asked("relation", RED, STAR), None),
        ("two red stars and a circle", Asked("count"), "three"),
        ("some colorful shapes", Asked("count"), None),
        ("two shapes on the grass, a red circle and a star", Asked("count"), "two"),
        ("one two three shapes", Asked("count"), None),
        ("a star on a lawn", Asked("background"), "grass"),
        ("a star in the night sky", Asked("background"), "night"),
        ("a star on a brown background", Asked("background"), None),  # sand or wood
        ("a pink star on a gray wall", Asked("background colour"), "gray"),
        ("a star in the top left corner", Asked("corner", STAR), "top left"),
        ("a star in the corner", Asked("corner", STAR), None),
        ("a star at the bottom", Asked("side", STAR), "bottom"),
        ("star star star red red", Asked("colour", STAR), None),
        ("", Asked("count"), None),
    ],
)
def test_what_follows_from_a_caption(caption, asked, answer):
    assert read_caption(caption).answer(asked) == answer


def test_captions_of_a_scene_are_read_as_they_were_meant(asked):
    """What captions say of texture, relation and place is so; of names and numbers nearly always, as people err."""
    said = defaultdict(list)
    for index, (scene, pairs) in enumerate(asked):
        for caption in write_captions(scene, np.random.default_rng(index), 2):
            reading = read_caption(caption)
            for wanted, question in pairs:
                answer = reading.answer(wanted)
                if answer in question.options:
                    said[question.type].append(answer == question.answer)
    for name, least in {"colour": 0.96, "shape": 0.95, "size": 0.95, "count": 0.85}.items():
        assert len(said[name]) > 300 and np.mean(said[name]) > least, name
    for name in set(TYPES) - {"colour", "shape", "size", "count"}:
        assert len(said[name]) > 5 and np.mean(said[name]) > 0.98, name
