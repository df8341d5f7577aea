"""The file of questions that grows image by image: what it remembers, what it repairs, what it leaves alone."""

import json
from collections import Counter

import pytest

from src.data.questions import Question, QuestionFile, load_questions
from src.runtime.errors import InputError


def question(image_id, text="what"):
    return Question(image_id, text, ("a", "b", "c", "d"), "a")


def filled(folder) -> QuestionFile:
    """Image 1 with two questions kept, image 2 with none."""
    made = QuestionFile(folder / "new/questions.jsonl")
    made.add(1, [question(1), question(1, "where")], Counter(kept=2, leaks=1))
    made.add(2, [], Counter(unanswerable=1, malformed=2))
    return made


def test_it_is_on_the_disk_at_once_and_read_again(tmp_path):
    made = filled(tmp_path)
    again = QuestionFile(made.path)
    assert load_questions(made.path) == {1: [question(1), question(1, "where")]}
    for file in (made, again):
        assert (file.image_ids, file.without) == ({1, 2}, {2})
        assert file.counts == Counter(images=2, kept=2, leaks=1, unanswerable=1, malformed=2)
    assert made.summary() == again.summary()
    assert "2 images, 6 questions made, 2 kept; dropped: 1 leaks" in made.summary()
    assert "1 unanswerable (not answered with it), 2 malformed" in made.summary()
    assert made.summary().endswith("0 images without a readable reply, 1 without a question")


def test_the_first_images_may_have_no_question_at_all(tmp_path):
    made = QuestionFile(tmp_path / "questions.jsonl")
    made.add(7, [], Counter(unreadable=1))
    again = QuestionFile(made.path)
    again.add(8, [question(8)], Counter(kept=1))
    assert (again.image_ids, again.without, again.counts["unreadable"]) == ({7, 8}, {7}, 1)


def test_lines_that_were_cut_off_are_removed_and_their_images_done_again(tmp_path):
    made = filled(tmp_path)
    done = made.path.with_name("questions.jsonl.done")
    for file in (made.path, done):
        with open(file, "a") as stream:
            stream.write('{"image_id": 3, "ques')
    again = QuestionFile(made.path)
    assert again.image_ids == {1, 2}
    again.add(3, [question(3)], Counter(kept=1))
    assert set(load_questions(made.path)) == {1, 3} and QuestionFile(made.path).image_ids == {1, 2, 3}


def test_an_image_whose_questions_were_written_but_not_its_line_is_done(tmp_path):
    made = filled(tmp_path)
    done = made.path.with_name("questions.jsonl.done")
    done.write_text(done.read_text().splitlines(keepends=True)[1])  # of image 2
    assert QuestionFile(made.path).image_ids == {1, 2}


def test_questions_written_by_hand_stay(tmp_path):
    path = tmp_path / "questions.jsonl"
    mine = json.dumps({"image_id": 5, "question": "mine", "options": ["x", "y"], "answer": "x"})
    path.write_text(mine)  # without an end of line
    made = QuestionFile(path)
    assert (made.image_ids, made.without, made.counts["images"]) == ({5}, set(), 0)
    made.add(6, [question(6)], Counter(kept=1))
    made.add(7, [], Counter(leaks=1))
    with open(path, "a") as stream:
        stream.write(mine.replace("5", "7") + "\n")
    assert set(load_questions(path)) == {5, 6, 7} and path.read_text().startswith(mine)
    assert made.without == {7} and QuestionFile(path).without == set()


def test_image_ids_that_are_texts_and_separators_in_questions(tmp_path):
    made = QuestionFile(tmp_path / "questions.jsonl")
    made.add("a\u2028b.jpg", [], Counter(unreadable=1))
    with made.path.open("a", encoding="utf-8") as file:
        line = {"image_id": 7, "question": "a\u2028b", "options": ["x", "y"], "answer": "x"}
        file.write(json.dumps(line, ensure_ascii=False))
    done = made.path.with_name("questions.jsonl.done")
    done.write_text(done.read_text(encoding="utf-8").replace("\\u2028", "\u2028"), encoding="utf-8")
    assert QuestionFile(made.path).image_ids == {"a\u2028b.jpg", 7}
    assert QuestionFile(made.path).without == {"a\u2028b.jpg"}


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"image_id": 4}', '{"image_id": 4, "kept": "many"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    made = filled(tmp_path)
    with open(made.path.with_name("questions.jsonl.done"), "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"questions\.jsonl\.done: line 3 is damaged"):
        QuestionFile(made.path)
