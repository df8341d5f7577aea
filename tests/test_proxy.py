"""Which proxy a server is asked through: by hand, and with a proxy of the test's own."""

import os

import pytest
from fake_server import fake_server, read_caption
from test_server import answerer, presentations

from src.rewards.proxy import is_this_machine, masked, proxy_for
from src.runtime.errors import InputError

VARIABLES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, with no other proxy around."""

    def put(**variables):
        for name in list(os.environ):
            if name.lower() in VARIABLES:
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    put()
    return put


HERE = ["127.0.0.1", "127.8.9.1", "127.1", "0x7f000001", "2130706433", "localhost", "LOCALHOST.", "a.localhost", "::1"]
HERE += ["::ffff:127.0.0.1", "0.0.0.0", "::", "ip6-localhost", os.uname().nodename]
ELSEWHERE = ["example.org", "localhost.example.org", "128.0.0.1", "10.0.0.1", "::2", "::ffff:10.0.0.1", "127.0.0.1.nip"]


def test_what_this_machine_is():
    assert [host for host in HERE + ELSEWHERE if is_this_machine(host)] == HERE


@pytest.mark.parametrize("url", [f"http://{f'[{host}]' if ':' in host else host}:8000/v1" for host in HERE])
def test_this_machine_is_asked_directly_whatever_the_variables_say(environment, url):
    for value in ("http://proxy:3128", "socks5://proxy", "nonsense://", "http://proxy:port"):
        environment(http_proxy=value, HTTPS_PROXY=value, all_proxy=value)
        assert proxy_for(url) is None


@pytest.mark.parametrize(
    "variables, url, proxy",
    [
        ({"http_proxy": "http://p:1"}, "http://host/v1", ("http://p:1", "http_proxy")),
        ({"HTTP_PROXY": "http://p:1"}, "http://host/v1", ("http://p:1", "HTTP_PROXY")),
        ({"http_proxy": "p:1"}, "http://host/v1", ("http://p:1", "http_proxy")),
        ({"http_proxy": " http://p:1\n"}, "http://host/v1", ("http://p:1", "http_proxy")),
        ({"http_proxy": "http://p:1"}, "https://host/v1", None),
        ({"https_proxy": "http://p:1", "all_proxy": "q"}, "https://host/v1", ("http://p:1", "https_proxy")),
        ({"https_proxy": "ftp://p", "all_proxy": "q"}, "http://host/v1", ("http://q", "all_proxy")),
        ({"http_proxy": "", "HTTP_PROXY": "p"}, "http://host/v1", None),
        ({"http_proxy": " "}, "http://host/v1", None),
        ({}, "http://host/v1", None),
    ],
)
def test_the_variable_that_counts(environment, variables, url, proxy):
    environment(**variables)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    "entry, hosts",
    [
        ("example.org", "example.org www.example.org"),
        (".example.org", "example.org www.example.org"),
        ("*.EXAMPLE.org", "example.org www.example.org"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.0.0.0/8 , fd00::/8", "10.1.2.3 [fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("example.org:8000 10.1.2.3:80", "example.org www.example.org"),
        ("*", "example.org www.example.org notexample.org 10.1.2.3 [fd00::1]"),
        ("ample.org, ,[::1,10.0.0.0/99", ""),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_that_no_proxy_names_are_asked_directly(environment, name, entry, hosts):
    environment(http_proxy="http://p:1", **{name: entry})
    every = ["example.org", "www.example.org", "notexample.org", "10.1.2.3", "[fd00::1]"]
    assert [host for host in every if proxy_for(f"http://{host}:8000/v1") is None] == hosts.split()


@pytest.mark.parametrize(
    "value, words",
    [
        ("socks5://p:1", "socksio"),
        ("socks5h://p:1", "socksio"),
        *[(f"{scheme}://p:1", "begins with http://, https://") for scheme in ("socks", "socks4", "ftp", "file")],
        ("http://p:port", "not a proxy URL"),
        ("http://p:99999", "not a proxy URL"),
        ("http://[::1", "not a proxy URL"),
        ("://", "begins with"),
        ("http://", "not a proxy URL"),
        ("http://a b:1", "not a proxy URL"),
        ("http://p\x01:1", "not a proxy URL"),
        ("http://user:secret@p:port", "not a proxy URL"),
        ("http://user:secret/secret@p", "not a proxy URL"),
        ("user:secret@:1", "not a proxy URL"),
    ],
)
def test_what_is_no_proxy_is_one_line(environment, monkeypatch, value, words):
    monkeypatch.setattr("src.rewards.proxy.find_spec", lambda name: None)
    environment(all_proxy=value)
    with pytest.raises(InputError, match=r"^all_proxy=.*; correct it, or add host to no_proxy$") as error:
        proxy_for("http://host/v1")
    assert words in str(error.value) and str(error.value).isprintable() and "secret" not in str(error.value)


def test_credentials_are_masked():
    assert masked("http://user:p@ss@proxy:1/x") == "http://***@proxy:1/x"
    assert masked("user:secret@proxy") == "***@proxy" and masked("http:/u:s@proxy") == "http:/***@proxy"
    assert masked("http://proxy:1") == "http://proxy:1"


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(environment):
    with fake_server(read_caption) as proxy, fake_server(read_caption) as server:
        environment(http_proxy=proxy.url, HTTP_PROXY=proxy.url, https_proxy="ftp://x", all_proxy="socks://x:y")
        port = server.server_address[1]
        for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0"):
            assert answerer(server, base_url=f"http://{host}:{port}/v1").answer(presentations(1)) == [1]
    assert not proxy.requests and not proxy.tunnels


def test_another_server_is_asked_through_the_proxy_which_the_message_names(environment):
    away = "http://model.invalid:8000/v1"
    with fake_server(read_caption) as proxy:
        environment(http_proxy=f"user:secret@127.0.0.1:{proxy.server_address[1]}")
        assert answerer(proxy, base_url=away).answer(presentations(1)) == [1]
        assert [body["path"] for body in proxy.requests] == [f"{away}/chat/completions"]
        proxy.behave = lambda body, number: (503, {})
        route = r"through the proxy http://\*\*\*@127\.0\.0\.1:\d+ of http_proxy: add the host to no_proxy to bypass it"
        with pytest.raises(InputError, match=f"InternalServerError.*{route}"):
            answerer(proxy, base_url=away)
        environment(https_proxy=proxy.url)
        with pytest.raises(InputError, match=r"APIConnectionError.*502.*through the proxy http://127.* of https_proxy"):
            answerer(proxy, base_url="https://model.invalid/v1")
        assert proxy.tunnels == ["model.invalid:443"]
        environment(http_proxy=proxy.url, no_proxy="model.invalid")
        proxy.requests.clear()
        with pytest.raises(InputError, match=r"model.invalid.*APIConnectionError") as error:
            answerer(proxy, base_url=away)
        assert "through" not in str(error.value) and not proxy.requests
    environment(http_proxy=proxy.url)  # which has ended
    with pytest.raises(InputError, match=r"Connection refused.*through the proxy"):
        answerer(proxy, base_url=away)


def test_certificates_are_read_where_they_are_needed(environment, monkeypatch):
    with fake_server(read_caption) as server:
        monkeypatch.setenv("SSL_CERT_FILE", "/gone.pem")
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        assert answerer(server).answer(presentations(1)) == [1]
        with pytest.raises(InputError, match=r"^SSL_CERT_FILE=/gone\.pem: .*No such file.*; correct or unset it"):
            answerer(server, base_url="https://model.invalid/v1")


def test_a_key_that_no_header_can_carry_is_one_line_without_it(monkeypatch):
    with fake_server(read_caption) as server:
        for key in ("sk-é", "sk\nsecret"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            with pytest.raises(InputError, match=r"^OPENAI_API_KEY holds characters") as error:
                answerer(server)
            assert key not in str(error.value)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user\r\n")
        answerer(server).answer(presentations(1))
        assert server.requests[0]["key"] == "Bearer sk-of-the-user"
