"""Questions from a vision-language model: the leak filter against a table, exact counts, strict reading."""

import io
import json
from collections import Counter

import pytest
from fake_server import fake_server, put, says, sees, shown
from PIL import Image

from src.config.schema import CapRLConfig
from src.data.questions import CANNOT, Question
from src.rewards.question_maker import UNSEEN, ImageFailed, QuestionMaker, clean_question, read_list
from src.runtime.errors import InputError

OPTIONS = ["red", "green", "blue", "gray"]
GOOD = {"question": "what color", "options": OPTIONS, "answer": "blue", "type": "attribute"}


def picture(color="white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, "PNG")
    return out.getvalue()


def right(options):
    return "blue"


def unseen(options):
    return UNSEEN


def first(options):
    return options[0]


def unless_first(options):
    """Right in three rotations of four."""
    return UNSEEN if options[0] == "blue" else "blue"


def if_first(options):
    """Right in one rotation of four."""
    return "blue" if options[0] == "blue" else UNSEEN


def chats(options):
    return "I cannot see an image."


def chats_once(options):
    return "It is hard to say." if options[0] == "red" else "blue"


# What the model answers with the image and without, and what becomes of the question.
TABLE = {
    "seen": (right, unseen, "kept"),
    "seen, wrong without": (right, lambda options: "gray", "kept"),
    "seen, silent without": (right, chats, "kept"),
    "known": (right, right, "leaks"),
    "known in one rotation": (right, if_first, "leaks"),
    "always A without": (right, first, "leaks"),
    "known, but not seen": (unseen, right, "leaks"),
    "not seen": (unseen, unseen, "unanswerable"),
    "seen in three rotations": (unless_first, unseen, "unanswerable"),
    "seen, silent once": (chats_once, unseen, "unanswerable"),
    "always A": (first, unseen, "unanswerable"),
}


def maker(server, questions=5, **settings):
    """Connected to the fake server, which then forgets the first question."""
    defaults = dict(questions=None, presentations=1, max_failed=0.2, answerer="server", base_url=server.url, model="m")
    defaults |= dict(max_tokens=32, extra_body=None, timeout=10.0, retries=0, concurrency=2)
    defaults |= dict(read="letter", template="{prompt}")
    made = QuestionMaker(CapRLConfig(**(defaults | settings)), questions)
    server.requests.clear()
    return made


def of_table(question, options, url):
    """The option that the model of TABLE names; of the first question about a picture, the first."""
    return TABLE[question][url is None](options) if question in TABLE else options[0]


def writes(*entries):
    return lambda url: json.dumps(entries)


def about(*names):
    return [GOOD | {"question": name} for name in names]


def test_questions_are_kept_that_need_the_image():
    with fake_server(sees(writes(*about(*TABLE)), of_table)) as server:
        kept, counts = maker(server, questions=20).make(7, picture)
    wanted = [name for name, (_, _, fate) in TABLE.items() if fate == "kept"]
    assert kept == [Question(7, name, tuple(OPTIONS), "blue", "attribute") for name in wanted]
    assert counts == Counter(fate for _, _, fate in TABLE.values())


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table(name):
    with fake_server(sees(writes(*about(name)), of_table)) as server:
        assert maker(server).make(7, picture)[1] == Counter([TABLE[name][2]])


def test_every_rotation_is_asked_once_with_the_image_and_once_without():
    with fake_server(sees(writes(*about("seen", "known")), of_table)) as server:
        maker(server).make(7, picture)
        writing, *answering = server.requests
    rotations = [tuple(OPTIONS[turn:] + OPTIONS[:turn]) for turn in range(4)]
    wanted = {(name, turned, with_image) for name in ("seen", "known") for turned in rotations for with_image in (0, 1)}
    asked = []
    for body in answering:
        url, text = shown(body)
        question, options = put(text)
        assert options.pop() == UNSEEN and url in (None, shown(writing)[0])
        asked.append((question, tuple(options), url is not None))
    assert len(asked) == 16 and set(asked) == wanted
    texts = {
        with_image: [text for url, text in map(shown, answering) if (url is not None) == with_image]
        for with_image in (True, False)
    }
    assert sorted(texts[True]) == sorted(texts[False])  # only the picture tells
    assert (writing["temperature"], writing["model"]) == (0, "m") and "Write 5 multiple-choice" in shown(writing)[1]
    assert shown(writing)[0].startswith("data:image/png;base64,")


MALFORMED = {
    "no object": "what color",
    "no question": {key: GOOD[key] for key in ("options", "answer")},
    "blank question": GOOD | {"question": " \n"},
    "number": GOOD | {"options": ["1", "2", "3", 4]},
    "three options": GOOD | {"options": OPTIONS[:3]},
    "five options": GOOD | {"options": [*OPTIONS, "pink"]},
    "options of an object": GOOD | {"options": {"A": "red"}},
    "twice the same": GOOD | {"options": ["red", "red ", "blue", "gray"]},
    "answer as letter": GOOD | {"answer": "C"},
    "answer missing": GOOD | {"answer": None},
    "lettered options": GOOD | {"options": ["A. red", "B. green", "C. blue", "D. gray"], "answer": "C. blue"},
    "way out": GOOD | {"options": ["red", "green", "blue", UNSEEN]},
    "way out of captions": GOOD | {"options": ["red", "green", "blue", CANNOT]},
    "half a character": GOOD | {"question": "what \ud83d"},
}


@pytest.mark.parametrize("entry", MALFORMED.values(), ids=MALFORMED)
def test_malformed_questions_are_not_asked(entry):
    assert clean_question(entry, 7) is None


def test_malformed_questions_are_counted_and_the_others_asked():
    entries = [*MALFORMED.values(), *about("seen", "seen", "known"), *about("not seen")]
    with fake_server(sees(writes(*entries), of_table)) as server:
        kept, counts = maker(server, questions=len(entries) - 1).make(7, picture)
        assert len(server.requests) == 1 + 2 * 8  # the last is more than was asked for
    assert [question.question for question in kept] == ["seen"]
    assert counts == Counter(kept=1, leaks=1, malformed=len(MALFORMED) + 1)  # "seen" comes twice


def test_questions_hold_characters_of_any_kind():
    """A joiner in an emoji and in Persian, a soft hyphen."""
    entry = GOOD | {"question": "what \U0001f468\u200d\U0001f469 \u0646\u200c\u0627 so\u00adft\u00a0one"}
    assert clean_question(entry, 7).question == "what \U0001f468\u200d\U0001f469 \u0646\u200c\u0627 so\u00adft one"


def test_questions_are_tidied():
    entry = GOOD | {"question": " what\ncolor ", "options": ["red", "green", "light  blue", "gray"], "hint": 1}
    assert clean_question(entry | {"answer": "light blue ", "type": "hue"}, 7) == Question(
        7, "what color", ("red", "green", "light blue", "gray"), "light blue", "other"
    )


@pytest.mark.parametrize(
    "reply, entries",
    [
        ("[1, 2]", [1, 2]),
        ("\n[]\n", []),
        ("```json\n[1]\n```", [1]),
        ("```\n[1]```\n", [1]),
        *[(reply, None) for reply in ("", None, "{}", '{"questions": [1]}', "[1", "[1,]", "Here: [1]", "[1] Enjoy!")],
        *[
            (reply, None)
            for reply in ("```json\n[1]", "[1]\n```", "```python\n[1]\n```", "[" * 100_000 + "]" * 100_000)
        ],
    ],
)
def test_replies_are_read_strictly(reply, entries):
    assert read_list(reply) == entries


def test_nonsense_is_given_one_more_try_that_is_not_the_same(capsys):
    replies = ["Sure! Here are five questions.", json.dumps(about("seen"))]
    with fake_server(sees(lambda url: replies.pop(0), of_table)) as server:
        kept, counts = maker(server).make(7, picture)
        assert [body["temperature"] for body in server.requests[:3]] == [0, 0.7, 0]
    assert len(kept) == 1 and counts == Counter(kept=1)
    with fake_server(sees(lambda url: "Sure!", of_table)) as server:
        made = maker(server)
        assert [made.make(image_id, picture) for image_id in (7, 8)] == [([], Counter(unreadable=1))] * 2
        assert len(server.requests) == 4
    assert capsys.readouterr().out.count('shown: "Sure!"') == 1


THOUGHT = "<think>\nA list [1, 2]?\n</think>\n\n"


def test_what_a_model_writes_stands_behind_its_thinking():
    def thinks(model):
        def behave(body, number):
            reply = model(body, number)[1]["choices"][0]["message"]["content"]
            return says(THOUGHT + reply)

        return behave

    with fake_server(thinks(sees(writes(*about(*TABLE)), of_table))) as server:
        kept, counts = maker(server, questions=20, max_tokens=4096).make(7, picture)
        assert server.requests[0]["max_tokens"] == 4096 + 20 * 150 and server.requests[1]["max_tokens"] == 4096
    assert counts == Counter(fate for _, _, fate in TABLE.values()) and len(kept) == counts["kept"]


def test_writing_that_is_cut_off_decides_nothing():
    """The image is done another time, with another caprl.max_tokens."""
    cut = says("<think>\nThere is a " + "red " * 99, "length")
    model = sees(writes(), of_table)
    with fake_server(model) as server:
        made = maker(server)
        server.behave = lambda body, number: cut if put(shown(body)[1]) is None else model(body, number)
        with pytest.raises(ImageFailed, match=r"cut off after 782 tokens.*raise caprl.max_tokens") as error:
            made.make(7, picture)
        assert error.value.down and len(server.requests) == 2


def fails_at(number, status):
    model = sees(writes(*about("seen")), of_table)
    return lambda body, place: (status, {"error": {"message": "no"}}) if place == number else model(body, place)


@pytest.mark.parametrize("number", [0, 1, 8], ids=["writing", "answering", "the last rotation"])
def test_a_request_that_fails_decides_nothing(number):
    """Not even without the image: the image is done another time."""
    with fake_server(sees(writes(), of_table)) as server:
        made = maker(server)
        for status, down in ((500, True), (401, True), (400, False), (413, False)):
            server.requests.clear()
            server.behave = fails_at(number, status)
            with pytest.raises(ImageFailed) as error:
                made.make(7, picture)
            assert error.value.down == down and len(server.requests) == number + 1


def test_images_that_cannot_be_read_are_not_sent():
    def gone():
        raise FileNotFoundError("gone.jpg")

    with fake_server(sees(writes(), of_table)) as server:
        made = maker(server)
        for load, reason in ((gone, "gone.jpg"), (lambda: b"GIF", "not an image")):
            with pytest.raises(ImageFailed, match=reason) as error:
                made.make(7, load)
            assert not error.value.down
        made.stop.set()
        with pytest.raises(ImageFailed, match="stopped"):
            made.make(7, picture)
        assert not server.requests


def test_a_model_without_eyes_is_told_at_the_start():
    def blind(body, number):
        return (400, {"error": {"message": "m is not a multimodal\nmodel"}}) if shown(body)[0] else says("A")

    with fake_server(blind) as server, pytest.raises(InputError) as error:
        maker(server)
    assert f"caprl.base_url={server.url}: model m does not answer (BadRequestError" in str(error.value)
    assert "start a vision-language model" in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_names_no_option_is_told_at_the_start():
    model = fake_server(lambda body, number: says("<think>\nThe image is", "length"))
    with model as server, pytest.raises(InputError) as error:
        maker(server)
    words = 'model m names no option: it replied "<think> The image is" (cut off after 32 tokens); if the model thinks'
    assert words in str(error.value) and "caprl.extra_body=" in str(error.value) and "\n" not in str(error.value)
