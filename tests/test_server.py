"""The answering model behind an OpenAI-compatible server, against a server of the test's own. No network."""

import math
import threading
import time
from types import SimpleNamespace

import pytest
from fake_server import asked, fake_server, read_caption, says

from src.config import CapRLConfig
from src.data.questions import CANNOT, Presentation
from src.errors import InputError
from src.rewards.server import ServerAnswerer, most_likely, prompt, read_letter

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
        timeout=10.0,
        retries=0,
        concurrency=4,
        read="letter",
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


@pytest.mark.parametrize(
    "reply, place",
    [
        *[(reply, 1) for reply in ("B", " b\n", "B.", "(B)", "B)", "B: blue", "B. blue.", "(B) blue")],
        ("C. " + CANNOT, 2),
        *[
            (reply, None)
            for reply in ("D", "blue", "A blue ball", "B. red", "AB", "B or C", "", "?", "The answer is B")
        ],
    ],
)
def test_letters_are_read_strictly(reply, place):
    assert read_letter(reply, OPTIONS) == place


def top(**probabilities):
    return [SimpleNamespace(token=token, logprob=math.log(p)) for token, p in probabilities.items()]


def test_the_most_likely_letter_counts_every_spelling():
    # A 0.3; B 0.2 + 0.15 with a blank before it
    assert most_likely(top(**{"A": 0.3, "B": 0.2, " B": 0.15, "The": 0.35}), 3) == 1
    assert most_likely(top(**{"A": 0.3, "B": 0.2, "▁C": 0.1}), 3) == 0
    assert most_likely(top(D=0.9, C=0.1), 3) == 2  # there is no fourth option
    assert most_likely(top(**{"The": 0.9, "": 0.05, "AB": 0.05}), 3) is None


def logprobs(body, number=0):
    """A server whose model is likeliest to begin its reply with "The", and then with the right letter."""
    letter = read_caption(body)[1]["choices"][0]["message"]["content"]
    reply = says("The")[1]
    entries = [{"token": token, "logprob": lp, "bytes": None} for token, lp in (("The", -0.1), (letter, -3), ("A", -5))]
    reply["choices"][0]["logprobs"] = {"content": [entries[0] | {"top_logprobs": entries}]}
    return 200, reply


def test_reading_by_likelihood():
    with fake_server(logprobs) as server:
        made = answerer(server, read="likelihood")
        assert made.answer([*presentations(2), *presentations(1, "")]) == [1, 1, 2]
        assert all(
            (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1) for body in server.requests
        )
        server.behave = read_caption
        with pytest.raises(InputError, match=r"caprl\.read"):  # a server without log-probs is told at the start
            answerer(server, read="likelihood")
