"""The answering model behind an OpenAI-compatible server, against a server of the test's own. No network."""

import re
import threading
import time

import pytest
from fake_server import asked, fake_server, read_caption, says

from src.config.schema import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.rewards.server import ServerAnswerer, prompt
from src.runtime.errors import InputError

OPTIONS = ("red", "blue", CANNOT)


def presentations(count, answer="blue"):
    return [Presentation(f"caption {n} {answer}", "what color", OPTIONS) for n in range(count)]


def answerer(server, **settings):
    """Connected to the fake server, which then forgets the first question."""
    defaults = dict(
        questions=None,
        presentations=4,
        max_failed=0.2,
        answerer="server",
        base_url=server.url,
        model="m",
        max_tokens=32,
        extra_body=None,
        timeout=10.0,
        retries=0,
        concurrency=4,
        read="letter",
        template="{prompt}",
    )
    made = ServerAnswerer(CapRLConfig(**(defaults | settings)))
    server.requests.clear()
    server.most = 0
    return made


def test_answers_come_in_order_and_no_more_at_once_than_concurrency():
    together = threading.Barrier(3)

    def behave(body, number):
        """The first three wait for one another; later ones overtake."""
        if number < 3:
            together.wait(30)
        time.sleep(0.02 * (number % 3))
        return read_caption(body)

    with fake_server(read_caption) as server:
        made = answerer(server, concurrency=3)
        server.behave = behave
        mixed = [p for pair in zip(presentations(10), presentations(10, "red"), presentations(10, "")) for p in pair]
        assert made.answer(mixed) == [1, 0, 2] * 10
        assert server.most == 3 and len(server.requests) == 30
        assert made.answer([]) == []


def test_the_request_is_what_the_interface_wants(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    with fake_server(read_caption) as server:
        answerer(server).answer(presentations(1))
        (body,) = server.requests
    assert body["path"] == "/v1/chat/completions" and body["key"] == "Bearer sk-of-the-user"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 32)
    assert body["messages"] == [{"role": "user", "content": prompt(presentations(1)[0])}]
    assert asked(body) == ("caption 0 blue", list(OPTIONS)) and "what color\nA. red\nB. blue\nC. cannot" in str(
        body["messages"][0]["content"]
    )


def test_failed_requests_are_tried_again():
    with fake_server(read_caption) as server:
        made = answerer(server, retries=2)
        server.behave = lambda body, number: (500 if number % 3 < 2 else 200, read_caption(body)[1])
        assert [made.answer(presentations(1)) for _ in range(3)] == [[1]] * 3
        assert len(server.requests) == 9
        server.behave = lambda body, number: (400, {"error": {"message": "too long"}})
        assert made.answer(presentations(1)) == [None] and len(server.requests) == 10  # of no use to try again


NO_ANSWERS = {
    "nonsense": says("I think that the ball is blue"),
    "empty": says(""),
    "nothing": says(None),
    "no option": says("D"),
    "no choices": (200, {"choices": []}),
    "another shape": (200, {"error": "busy"}),
    "no object": (200, [1]),
    "no JSON": (200, b"<html>"),
    "error": (500, {"error": {"message": "out of memory"}}),
}


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_a_failure_and_touches_no_other(reply, capsys):
    with fake_server(read_caption) as server:
        made = answerer(server)
        server.behave = lambda body, number: reply if asked(body)[0].startswith("caption 1") else read_caption(body)
        assert made.answer(presentations(3)) == [1, None, 1]
    assert capsys.readouterr().out.startswith("1 of 3 questions got no answer; ")


def test_a_server_that_hangs_is_not_waited_for():
    over = threading.Event()

    def behave(body, number):
        if number == 1:
            over.wait(60)
        return read_caption(body)

    with fake_server(read_caption) as server:
        made = answerer(server, timeout=2.0)
        server.behave = behave
        started = time.perf_counter()
        assert sorted(made.answer(presentations(3)), key=str) == [1, 1, None]
        assert time.perf_counter() - started < 30
        over.set()


def test_a_server_that_dies_is_given_up():
    with fake_server(read_caption) as server:
        made = answerer(server, concurrency=2)
        server.behave = lambda body, number: read_caption(body) if number < 10 else (500, {})
        answers = made.answer(presentations(40))
        assert answers.count(1) == 10 and answers[20:] == [None] * 20
        assert 14 <= len(server.requests) <= 20  # 2 * concurrency failures in a row, and what was under way
        server.behave = read_caption
        assert made.answer(presentations(2)) == [1, 1]  # the next call tries again


def test_single_failures_are_no_reason_to_give_up():
    with fake_server(read_caption) as server:
        made = answerer(server, concurrency=1)
        server.behave = lambda body, number: read_caption(body) if number % 2 else (500, {})
        assert made.answer(presentations(10)) == [None, 1] * 5


def test_a_bad_start_is_one_clear_line():
    with fake_server(lambda body, number: (401, {"error": {"message": "wrong\nkey"}})) as server:
        with pytest.raises(InputError) as error:
            answerer(server)
        assert len(server.requests) == 1
    assert f"caprl.base_url={server.url}: model m does not answer (AuthenticationError" in str(error.value)
    assert "OPENAI_API_KEY" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"caprl.base_url=.*APIConnectionError.*start the server"):
        answerer(server)  # which has ended


THINKS = says("<think>\nOkay, the user wants one letter. " + "Is it A? " * 50, "length")


@pytest.mark.parametrize(
    "reply, words",
    [
        (THINKS, r'it replied "<think> Okay, .* Is it A\?" \(cut off after 32 tokens\)'),
        (says(None, "length", reasoning_content="Okay,\nso"), 'only thinking "Okay, so" .cut off after 32 tokens'),
        (says("", "length", reasoning="Okay"), "only thinking"),
        (says("I think that the ball is red."), "I think that the ball is red."),
        (says(None, "content_filter"), "it replied nothing"),
        (says(None), "nothing"),
        (says("D"), '"D"'),
    ],
)
def test_a_model_whose_first_reply_names_no_option_is_told_at_the_start(reply, words):
    with fake_server(lambda body, number: reply) as server, pytest.raises(InputError) as error:
        answerer(server)
    message = str(error.value)
    assert re.search(words, message) and message.isprintable() and len(message) < 500
    assert message.startswith(f"caprl.base_url={server.url}: model m names no option: it replied ")
    assert "raise caprl.max_tokens" in message and """caprl.extra_body='{"chat_template_kwargs": {"enab""" in message


def test_any_option_will_do_at_the_start():
    with fake_server(lambda body, number: says("C")) as server:
        assert answerer(server).answer(presentations(1)) == [2]


def test_models_that_think_are_read_behind_their_thinking(capsys):
    def behave(body, number):
        """The third is cut off while it thinks; the fourth, whose server takes the thinking out, too."""
        letter = read_caption(body)[1]["choices"][0]["message"]["content"]
        if body["messages"][0]["content"].startswith("Caption of an image: caption 2"):
            return THINKS
        if body["messages"][0]["content"].startswith("Caption of an image: caption 3"):
            return says(None, "length", reasoning_content="Is it A?")
        return says(f"<think>\nA? B? C?\n</think>\n\n**{letter}**", reasoning_content=None)

    with fake_server(behave) as server:
        assert answerer(server).answer(presentations(5)) == [1, 1, None, None, 1]
    said = capsys.readouterr().out
    assert said.startswith("2 of 5 questions got no answer; the last one: the model names no option: it replied ")
    assert "(cut off after 32 tokens)" in said and said.count("\n") == 1


def echo(body, shift=0, first=1):
    """A server of a model whose tokens are words: those that stood before are likely, and numbers that go on counting.

    shift: whose log-prob stands with a token; first: tokens at the beginning that are left out of what is echoed.
    """
    words = body["prompt"].split()
    likely = [word in words[:place] or word[:-1].isdigit() or word == "15" for place, word in enumerate(words)]
    scored = [None] + [-0.1 if (near and not shift) else -4.0 for near in likely[1:]]
    logprobs = {"token_logprobs": [*scored[first:], -9.0], "tokens": [], "text_offset": [], "top_logprobs": None}
    choice = {"index": 0, "finish_reason": "length", "text": "", "logprobs": logprobs}
    usage = {"prompt_tokens": len(words), "completion_tokens": 1, "total_tokens": len(words) + 1}
    return 200, {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@pytest.mark.parametrize("first", [0, 1])
def test_reading_by_likelihood(first):
    with fake_server(lambda body, number: echo(body, first=first)) as server:
        made = answerer(server, read="likelihood", template="<s> {prompt}")
        # red and blue are one word: -0.1 in the caption, else -4; the six words of CANNOT: "from" and "be" are nowhere
        assert made.answer([*presentations(2), *presentations(1, "red")]) == [1, 1, 0]
        assert made.answer(presentations(1, "")) == [0]  # neither: the first of equals, far above CANNOT
        prompts = [body["prompt"] for body in server.requests if "caption 1 blue" in body["prompt"]]
        question = "<s> Caption of an image: caption 1 blue\nQuestion: what color\nAnswer:"
        assert sorted(prompts) == sorted([question, *[f"{question} {option}" for option in OPTIONS]])
        (settings,) = {(b["echo"], b["logprobs"], b["max_tokens"], b["temperature"]) for b in server.requests}
        assert settings == (True, 1, 1, 0)


@pytest.mark.parametrize(
    "behave, reason",
    [(lambda body, number: (404, {}), "NotFoundError"), (lambda body, number: echo(body, shift=1), "caprl.template")],
)
def test_a_server_whose_log_probs_do_not_serve_is_told_at_the_start(behave, reason):
    with fake_server(behave) as server, pytest.raises(InputError, match=rf"{reason}.*caprl\.read"):
        answerer(server, read="likelihood")
