"""The page as a browser talks to it, over HTTP, with a stand-in for the checkpoints."""

import json
import os
import re
import socket

import numpy as np
import pytest
from hostile import BAD, GOOD, TEXT

pytest.importorskip("gradio", reason="gradio is not installed: scripts/run_demo.sh installs it")
import httpx
from tiny import free_port

from src.captioning import gradio_page
from src.captioning.captions import DecodedCaption
from src.captioning.page import Shown, small_picture
from src.data.photographs import read_photograph
from src.runtime.errors import InputError


class StandIn:
    """Reads photographs as the page's model does, and says how large they are."""

    names = ("CE", TEXT)

    def show(self, path):
        pixels = read_photograph(path).pixels
        captions = [
            DecodedCaption("greedy", "{1} by {0}".format(*pixels.shape), -1.0),
            DecodedCaption("sample", "a dog", -2.0),
        ]
        words = [row.caption.split() for row in captions]
        looks = [(row, np.full((len(row), 4), 0.25, np.float32)) for row in words]
        return Shown(small_picture(pixels), dict.fromkeys(self.names, captions), dict.fromkeys(self.names, looks))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An HTTP client of a page that is served."""
    before = dict(os.environ)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads")),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SHARE": "True",  # must have no effect
    }
    port = free_port()
    blocks = gradio_page.serve_page(StandIn(), "127.0.0.1", port)
    assert blocks.share_url is None and not blocks.analytics_enabled
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    blocks.close()
    os.environ.clear()
    os.environ |= before


def call(page, function, *data, session="s"):
    """What an event of the page gives, or its error, as gradio's queue tells."""
    joined = page.post("/gradio_api/queue/join", json={"data": data, "fn_index": function, "session_hash": session})
    assert joined.status_code == 200, joined.text
    with page.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                return message["output"]
    raise AssertionError("no answer")


def upload(page, name, data):
    return page.post("/gradio_api/upload", files={"files": (name, data)})


def drop(page, file, session="s"):
    """What the page shows of an uploaded file: picture, table, dropdown, attention."""
    (path,) = upload(page, file.name, file.read_bytes()).json()
    return call(page, 0, {"path": path, "meta": {"_type": "gradio.FileData"}}, session=session)["data"]


def test_the_page_names_no_other_host(page):
    answer = page.get("/")
    assert answer.status_code == 200
    assert not re.findall(r'<(?:link|script|img|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', answer.text)
    assert "<img src=x" not in answer.text  # the name of a checkpoint
    assert "fonts.googleapis.com" not in answer.text and "cdnjs" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self' ")
    assert int(answer.headers["content-length"]) == len(answer.content) and "</html>" in answer.text
    theme = page.get("/theme.css").text
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", theme)


def test_a_photograph_is_captioned_and_attention_of_each_caption_shown(page, tmp_path):
    GOOD["turned.jpg"](tmp_path / "turned.jpg")
    picture, table, dropdown, looks, _ = drop(page, tmp_path / "turned.jpg")
    assert picture.startswith('<img class="seen" src="data:image/jpeg;base64,') and table.count("32 by 48") == 2
    assert "<img src=x" not in table and "&lt;img src=x" in table
    assert [value for _, value in dropdown["choices"]] == [0, 1, 2, 3] and looks.count("<figure>") == 3
    assert call(page, 1, 3, None)["data"][0].count("<figure>") == 2
    assert call(page, 0, None)["data"][:2] == ["", ""]
    assert call(page, 1, 3, None)["data"] == [""]  # nothing is shown any more


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_good_files_through_the_page(page, tmp_path, name):
    file = tmp_path / ("x" + os.path.splitext(name)[1])
    GOOD[name](file)
    assert " by " in drop(page, file)[1]


@pytest.mark.parametrize(
    "name", [name for name in BAD if name.split(".")[0] not in ("folder", "dangling", "loop", "pipe", "huge")]
)
def test_bad_files_through_the_page(page, tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    message, table, *_ = drop(page, tmp_path / name)
    assert reason in message and 'role="alert"' in message and table == ""


def test_odd_names_are_no_paths(page, tmp_path):
    GOOD["1x1.png"](tmp_path / "x.png")
    for name in ("../../../tmp/up.png", "naïve 写真.png", "'\"><script>.png", "two\nlines.png", "." * 300 + ".png"):
        (path,) = upload(page, name, (tmp_path / "x.png").read_bytes()).json()
        assert os.path.realpath(path).startswith(os.environ["GRADIO_TEMP_DIR"] + os.sep), name


def test_uploads_are_limited(page, monkeypatch):
    assert upload(page, "x.png", b"x" * (gradio_page.MAX_UPLOAD + 1)).status_code == 413


def test_files_of_the_machine_are_not_read(page):
    for path in ("/etc/passwd", f"{os.environ['GRADIO_TEMP_DIR']}/../x.png"):
        for upload in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path}):
            output = call(page, 0, upload)
            assert "data" not in output and "root:" not in json.dumps(output)
    for path in ("/etc/passwd", os.path.abspath(__file__), "requirements.txt"):
        assert page.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_nothing_is_fetched_for_a_client(page):
    upload = {"path": "http://example.org/x.png", "meta": {"_type": "gradio.FileData"}}
    assert call(page, 0, upload)["error"] == "Only uploads are captioned, not URLs."


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot serve on 127.0.0.1:{port} .*; pass another --host or --port"):
            gradio_page.serve_page(StandIn(), "127.0.0.1", port)
