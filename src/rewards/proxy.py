"""The proxy between this program and a server: http_proxy, https_proxy, all_proxy and no_proxy, in either case.

The HTTP client does not read these variables itself: it would contact a server on this machine through a proxy too, and
fail on a proxy that it does not need.
"""

import os
import re
import socket
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from src.runtime.errors import InputError

_SCHEMES = ("http", "https", "socks5", "socks5h")
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", "localhost6")


class Proxy(NamedTuple):
    """url: with its credentials; variable: the environment variable that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {masked(self.url)} of {self.variable}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy for a URL; None if it is contacted directly, as this machine always is.

    Errors: InputError naming the variable whose value is not a usable proxy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    # Sorted, so that a variable in lower case hides the one in upper case, even if it is empty.
    variables = {name.lower(): (value.strip(), name) for name, value in sorted(os.environ.items())}
    exempt, _ = variables.get("no_proxy", ("", ""))
    if is_this_machine(host) or any(_covers(entry, host, parts.port) for entry in re.split(r"[,\s]+", exempt)):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        value, variable = variables.get(name, ("", ""))
        if value:
            proxy = Proxy(value if "://" in value else f"http://{value}", variable)
            if fault := _fault(proxy.url):
                raise InputError(f"{variable}={masked(value)}: {fault}; correct it, or add {host} to no_proxy")
            return proxy
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host is a loopback or unspecified address, in any notation, or a name of this machine."""
    host = host.lower().rstrip(".")
    if host in (*_LOCAL_NAMES, socket.gethostname().lower()) or host.endswith(".localhost"):
        return True
    try:  # takes 127.1 and 0x7f000001 too, as connecting does
        address = ip_address(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0])
    except (OSError, ValueError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def masked(url: str) -> str:
    """A URL in one printable line, without its user name and password."""
    line = "".join(character if character.isprintable() else "?" for character in url)
    return re.sub(r"^(\w+:/+)?.*@", r"\1***@", line)


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of no_proxy matches: a name, domain or address, with :port or without, a network, or *."""
    entry = entry.lower().removeprefix("*.").lstrip(".")
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        names = (f".{host}".lower(), f".{host}:{port}".lower())
        return entry == "*" or (bool(entry) and any(name.endswith(f".{entry}") for name in names))


def _fault(url: str) -> str | None:
    """Why a URL cannot be used as a proxy."""
    scheme = url.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        return f"a proxy URL begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # its message may contain a part of the password
        usable = False
    if not usable:
        return "not a proxy URL such as http://proxy.example.org:3128"
    if scheme.startswith("socks") and find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio (python -m pip install socksio)"
    return None
