"""A small OpenAI-compatible server in threads of the test: it answers as its `behave` says."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """behave(body of the request, its number) -> (status, what to send as JSON, or bytes).

    requests: bodies so far, with the Authorization header as `key`; most: most requests that were under way at once.
    As a proxy it answers for every host itself, and opens no tunnels: tunnels are those that were asked for.
    """

    daemon_threads = True

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave = behave
        self.requests = []
        self.tunnels = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds a body back for 40 ms, behind its headers

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body |= {"path": self.path, "key": self.headers["Authorization"]}
        with server.lock:
            server.requests.append(body)
            number = len(server.requests) - 1
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        try:
            status, reply = server.behave(body, number)
        finally:
            with server.lock:
                server.under_way -= 1
        reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.send_header("retry-after-ms", "1")  # the client waits no longer before it tries again
        self.end_headers()
        with suppress(BrokenPipeError):  # a client that waits no longer
            self.wfile.write(reply)

    def do_CONNECT(self):
        self.server.tunnels.append(self.path)
        self.send_error(502)

    def log_message(self, *arguments):
        pass


@contextmanager
def fake_server(behave):
    """A server that listens while the body runs."""
    server = FakeServer(behave)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(text, finish="stop", **more):
    """A chat reply. more: what the message holds beside."""
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **more}}]}  # fmt: skip


def asked(body):
    """Caption and options of a request."""
    lines = body["messages"][0]["content"].splitlines()
    options = [line[3:] for line in lines if line[1:3] == ". "]
    return lines[0].partition(": ")[2], options


def read_caption(body, number=0):
    """The model: the option that the caption names, else the last, as a letter."""
    caption, options = asked(body)
    named = [place for place, option in enumerate(options) if option in caption.split()]
    return says("ABCDEFGH"[named[0] if named else len(options) - 1])


def shown(body):
    """The data: URL of a request's image, None where it has none, and the request's text."""
    parts = body["messages"][0]["content"]
    (text,) = (part["text"] for part in parts if part["type"] == "text")
    return next((part["image_url"]["url"] for part in parts if part["type"] == "image_url"), None), text


def put(text):
    """The question that a text puts, with its options; None for a text that wants questions to be written."""
    head, *lines = text.splitlines()
    options = [line[3:] for line in lines if line[1:3] == ". "]
    return (head.partition(": ")[2], options) if options else None


def sees(write, answer):
    """A vision-language model: write(url) -> reply; answer(question, options, url or None) -> the option it names."""

    def behave(body, number):
        url, text = shown(body)
        if put(text) is None:
            return says(write(url))
        question, options = put(text)
        named = answer(question, options, url)
        return says("ABCDEFGH"[options.index(named)] if named in options else named)

    return behave
