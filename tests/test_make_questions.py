"""The program that makes questions, as its user runs it: it goes on where it was stopped, whatever stopped it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest
from fake_server import fake_server, put, says, sees, shown
from tiny import PYTHON, TINY, WORLD, messages, run, tiny_data

from src.data.questions import load_questions

IMAGES = 8  # of the split val, for speed
CONCURRENCY = 2


def write(url):
    """Two questions about every image: one that needs it, and one that does not."""
    name = hashlib.sha256(url.encode()).hexdigest()
    common = {"options": ["a", "b", "c", "d"], "answer": "c", "type": "object"}
    return json.dumps([{"question": f"seen {name}", **common}, {"question": f"known {name}", **common}])


MODEL = sees(write, lambda question, options, url: "c" if url or question.startswith("known") else options[-1])


def slowly(body, number, seconds=0.02):
    time.sleep(seconds)
    return MODEL(body, number)


@pytest.fixture
def folder(tmp_path):
    """Where the questions go, with lists of a few images."""
    for split, count in (("train", 1), ("val", IMAGES), ("test", 1)):
        names = sorted(path.name for path in (tiny_data() / "images" / split).iterdir())[:count]
        (tmp_path / f"few_{split}.txt").write_text("\n".join(names))
    return tmp_path


def command(folder, url, *more):
    return [
        *("-m", "src.commands.make_questions", "--config", "configs/demo/ce.yaml", *TINY, f"data.root={tiny_data()}"),
        *(
            "--split",
            "val",
            "--questions",
            "2",
            "--base_url",
            url,
            "--model",
            "m",
            "caprl.retries=0",
            f"data.lists={folder}/few",
        ),
        *(f"caprl.concurrency={CONCURRENCY}", f"caprl.questions={folder}/questions_{{split}}.jsonl", *more),
    ]


def image_ids(folder):
    images = json.loads((tiny_data() / "annotations/captions_val.json").read_text())["images"]
    listed = (folder / "few_val.txt").read_text().split()
    return {image["id"] for image in images if image["file_name"] in listed}


def written_about(server):
    """How often the model was asked to write about each image."""
    bodies = [shown(body) for body in server.requests]
    return Counter(url for url, text in bodies if put(text) is None)


def summary(folder, failed=""):
    return (
        f"{folder}/questions_val.jsonl: 8 images, 16 questions made, 8 kept; dropped: 8 leaks (answered without the "
        "image), 0 unanswerable (not answered with it), 0 malformed; 0 images without a readable reply, 0 without a "
        f"question{failed}\n"
    )


def check(folder):
    """All images are done, each once."""
    questions = load_questions(folder / "questions_val.jsonl")
    assert questions.keys() == image_ids(folder)
    assert all(len(of_image) == 1 and of_image[0].question.startswith("seen ") for of_image in questions.values())


def test_all_images_are_asked_about_once(folder):
    with fake_server(slowly) as server:
        done = run(*command(folder, server.url))
        assert (done.returncode, done.stdout) == (0, summary(folder)), done.stderr
        assert server.most == CONCURRENCY
        assert len(server.requests) == 1 + IMAGES * (1 + 2 * 2 * 4)  # a first question; 2 questions, 4 rotations, twice
        assert list(written_about(server).values()) == [1] * IMAGES
    check(folder)
    before = (folder / "questions_val.jsonl").read_bytes()
    again = run(*command(folder, server.url))  # which has ended
    assert (again.returncode, again.stdout) == (0, summary(folder)), again.stderr
    assert (folder / "questions_val.jsonl").read_bytes() == before


def test_a_server_that_dies_stops_it_and_the_same_command_goes_on(folder):
    with fake_server(lambda body, number: MODEL(body, number) if number < 50 else (500, {})) as server:
        done = run(*command(folder, server.url))
    assert done.returncode == 3 and len(messages(done.stderr)) == 1, done.stderr
    assert f"error: caprl.base_url={server.url}: 4 images in a row failed" in done.stderr
    assert f"{folder}/questions_val.jsonl holds" in done.stderr
    assert done.stdout.count("failed: ") == 4 and "InternalServerError" in done.stdout
    kept = load_questions(folder / "questions_val.jsonl").keys()
    assert 1 <= len(kept) <= 2  # by 49 requests: an image takes 17, two are under way
    with fake_server(MODEL) as server:
        done = run(*command(folder, server.url))
        assert (done.returncode, done.stdout) == (0, summary(folder)), done.stderr
        assert len(written_about(server)) == IMAGES - len(kept)
    check(folder)


def test_images_that_the_server_refuses_do_not_stop_it(folder):
    refused = set()

    def behave(body, number):
        """Refuses five images one after the other: all but the first three."""
        url, text = shown(body)
        if url and put(text) is None and len(written_about(server)) > 3:
            refused.add(url)
            return 400, {"error": {"message": "too long"}}
        return MODEL(body, number)

    with fake_server(behave) as server:
        done = run(*command(folder, server.url))
    assert done.returncode == 0 and len(refused) == 5, done.stderr
    assert "3 images, 6 questions made, 3 kept" in done.stdout
    assert done.stdout.endswith(", 5 failed: run the same command to ask about them again\n")
    with fake_server(MODEL) as server:
        done = run(*command(folder, server.url))
        assert (done.returncode, done.stdout) == (0, summary(folder)), done.stderr
        assert set(written_about(server)) == refused
    check(folder)


def test_single_failures_are_no_reason_to_stop(folder):
    def behave(body, number):
        """Fails with every second image."""
        writing = put(shown(body)[1]) is None
        return (500, {}) if writing and sum(written_about(server).values()) % 2 == 0 else MODEL(body, number)

    with fake_server(behave) as server:
        done = run(*command(folder, server.url))
    assert done.returncode == 0 and "4 images, 8 questions made, 4 kept" in done.stdout, done.stderr
    assert done.stdout.endswith(", 4 failed: run the same command to ask about them again\n")


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_made_outlives_a_kill(folder, kill):
    with fake_server(slowly) as server:
        process = subprocess.Popen([PYTHON, *command(folder, server.url)], cwd=WORLD, stderr=subprocess.PIPE, text=True)
        path = folder / "questions_val.jsonl"
        while process.poll() is None and not (path.exists() and path.read_bytes()):  # opened, then written
            time.sleep(0.01)
        server.behave = partial(slowly, seconds=0.3)
        asked = len(server.requests)
        process.send_signal(kill)
        errors = process.communicate(timeout=60)[1]
        assert len(server.requests) < asked + 10  # no image that is under way is finished: each takes 17
        if kill == signal.SIGTERM:
            assert process.returncode == 4 and errors.startswith("error: ended by SIGTERM"), errors
        kept = path.read_text().count("\n")
        assert 1 <= kept < IMAGES
        server.requests.clear()
        server.behave = MODEL
        done = run(*command(folder, server.url))
        assert done.returncode == 0 and len(written_about(server)) == IMAGES - kept, done.stderr
    check(folder)


@pytest.mark.parametrize(
    "more, words",
    [
        ([], ["caprl.base_url=http://127.0.0.1:9/v1", "does not answer", "start a vision-language model"]),
        (["caprl.questions=null"], ["caprl.questions=null", "caprl.questions=questions_{split}.jsonl"]),
        (["--questions", "0"], ["--questions 0"]),
    ],
)
def test_bad_settings_are_one_line_and_status_2(folder, more, words):
    done = run(*command(folder, "http://127.0.0.1:9/v1", *more))
    assert done.returncode == 2 and len(messages(done.stderr)) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not list(folder.glob("questions*"))


def test_a_model_that_is_cut_off_while_it_thinks_is_one_line_and_status_2(folder):
    """And no variable about proxies, nor certificates, is in the way of a server on this machine."""
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    environment |= {"https_proxy": "ftp://x:y", "SSL_CERT_FILE": "/gone.pem"}
    with fake_server(lambda body, number: says("<think>\nOkay, the image is", "length")) as server:
        done = run(*command(folder, server.url), env=environment)
    assert done.returncode == 2 and len(messages(done.stderr)) == 1, done.stderr
    line = f"error: caprl.base_url={server.url}: model m names no option: it replied"
    line += ' "<think> Okay, the image is" (cut off after 32 tokens); if the model thinks first, raise caprl.max_tokens'
    assert messages(done.stderr)[0].startswith(line), done.stderr
    assert not list(folder.glob("questions*.jsonl")) and len(server.requests) == 1


def test_without_mindspore():
    """It starts in a second, where MindSpore alone takes seconds to import."""
    code = "import sys, src.commands.make_questions; print('mindspore' in sys.modules)"
    assert run("-c", code, python=sys.executable).stdout == "False\n"
