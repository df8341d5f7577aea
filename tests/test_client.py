"""Servers that want to be asked in their own way, against servers of the test's own that refuse the rest."""

import threading

import pytest
from fake_server import fake_server, read_caption
from test_server import answerer, echo, presentations

from src.runtime.errors import InputError

PARAMETERS = ("max_tokens", "max_completion_tokens", "temperature")


def refuse(message):
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


# What servers say of a parameter that they do not take.
OPENAI_TOKENS = refuse(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
OPENAI_TEMPERATURE = refuse(
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
)
PYDANTIC_TOKENS = {
    "detail": [{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]
}
LITELLM = refuse("litellm.UnsupportedParamsError: O-series models don't support temperature=0.0")
TGI = {"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"}


def server_that(refusals, status=400, model=read_caption):
    """One that refuses each of these parameters, one after the other, in these words."""

    def behave(body, number):
        for name, words in refusals.items():
            if name in body:
                return status, words
        return model(body, number)

    return behave


def sent(server):
    return [{name: body[name] for name in PARAMETERS if name in body} for body in server.requests]


@pytest.mark.parametrize(
    "refusals, status, learnt",
    [
        ({"max_tokens": OPENAI_TOKENS, "temperature": OPENAI_TEMPERATURE}, 400, {"max_completion_tokens": 32}),
        ({"max_tokens": PYDANTIC_TOKENS}, 422, {"max_completion_tokens": 32, "temperature": 0}),
        ({"temperature": LITELLM}, 400, {"max_tokens": 32}),
        ({"temperature": TGI}, 422, {"max_tokens": 32}),
    ],
    ids=["OpenAI", "pydantic", "LiteLLM", "TGI"],
)
def test_parameters_that_a_server_refuses_are_learnt_once(refusals, status, learnt, capsys):
    with fake_server(server_that(refusals, status)) as server:
        made = answerer(server)
        assert made.answer(presentations(3)) == [1] * 3
        assert sent(server) == [learnt] * 3
    assert capsys.readouterr().out.count("rejects the temperature") == ("temperature" in refusals)


def test_threads_learn_together():
    """All requests of a client are refused at once, each for another reason first."""
    together = threading.Barrier(4)
    with fake_server(read_caption) as server:
        made = answerer(server, concurrency=4)

        def behave(body, number):
            if number < 4:
                together.wait(30)
            names = ("max_tokens", "temperature")[:: 1 if number % 2 else -1]
            words = {"max_tokens": OPENAI_TOKENS, "temperature": OPENAI_TEMPERATURE}
            return server_that({name: words[name] for name in names})(body, number)

        server.behave = behave
        assert made.answer(presentations(4)) == [1] * 4 and len(server.requests) == 12
        assert made.answer(presentations(3)) == [1] * 3 and sent(server)[12:] == [{"max_completion_tokens": 32}] * 3


TOO_LARGE = refuse(
    "'max_tokens' or 'max_completion_tokens' is too large: 32. This model's maximum context length is 16 tokens."
)


@pytest.mark.parametrize(
    "refusals, requests",
    [
        ({"max_tokens": TOO_LARGE}, 1),  # its size, not the parameter
        ({"messages": OPENAI_TEMPERATURE}, 2),  # whatever is left out
        ({"max_tokens": OPENAI_TOKENS, "max_completion_tokens": OPENAI_TOKENS}, 2),
        ({"messages": refuse("Unknown parameter: 'top_k'.")}, 1),
    ],
)
def test_a_server_that_refuses_all_the_same_ends_it(refusals, requests):
    with fake_server(server_that(refusals)) as server:
        with pytest.raises(InputError, match=r"does not answer .BadRequestError"):
            answerer(server)
        assert len(server.requests) == requests


def test_what_was_of_no_use_is_not_kept():
    with fake_server(read_caption) as server:
        made = answerer(server)
        server.behave = lambda body, number: (400, OPENAI_TEMPERATURE) if number < 2 else read_caption(body)
        assert made.answer(presentations(1)) == [None] and made.answer(presentations(1)) == [1]
        assert [body.keys() & {"temperature"} for body in server.requests] == [{"temperature"}, set(), {"temperature"}]


def test_the_extra_body_joins_every_request():
    extra = '{"chat_template_kwargs": {"enable_thinking": false}, "temperature": 0.6}'
    with fake_server(read_caption) as server:
        answerer(server, extra_body=extra, max_tokens=2048).answer(presentations(1))
        (body,) = server.requests
        assert (body["chat_template_kwargs"], body["temperature"]) == ({"enable_thinking": False}, 0.6)
        assert (body["model"], body["max_tokens"]) == ("m", 2048)
    with fake_server(lambda body, number: echo(body)) as server:
        answerer(server, read="likelihood", extra_body='{"add_special_tokens": false}').answer(presentations(1))
        assert {body["add_special_tokens"] for body in server.requests} == {False}


def test_a_path_that_is_missing_is_named():
    missing = pytest.raises(InputError, match=r"NotFoundError.*caprl.base_url that ends with /v1")
    with fake_server(lambda body, number: (404, {"detail": "Not Found"})) as server, missing:
        answerer(server, base_url=server.url.removesuffix("/v1"))
