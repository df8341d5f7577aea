"""The proxy that a server is asked through: http_proxy, https_proxy, all_proxy and no_proxy, in lower or upper case.

The HTTP client does not read these variables itself: it would ask a server on this machine through a proxy too, and
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
    """url: with its credentials; variable: which names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {masked(self.url)} of {self.variable}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy for a URL; None where it is asked directly, as this machine always is.

    Errors: InputError naming the variable whose value is no usable proxy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if is_this_machine(host) or any(_covers(entry, host, parts.port) for entry in re.split(r"[,\s]+", _read("no")[1])):
        return None
    for kind in (parts.scheme, "all"):
        variable, value = _read(kind)
        if value:
            proxy = Proxy(value if "://" in value else f"http://{value}", variable)
            fault = _fault(proxy.url)
            if fault:
                raise InputError(
                    f"{variable}={masked(value)}: {fault}; correct it, or add {host} to no_proxy to ask it directly"
                )
            return proxy
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host is a loopback or unspecified address, in any notation, or a name of this machine."""
    host = host.lower().rstrip(".")
    if host in (*_LOCAL_NAMES, socket.gethostname().lower()) or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(socket.inet_aton(host))  # takes 127.1 and 0x7f000001 too, as connecting does
    except OSError:
        try:
            address = ip_address(host)
        except ValueError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def masked(url: str) -> str:
    """A URL in one printable line, without its user name and password."""
    line = "".join(character if character.isprintable() else "?" for character in url)
    return re.sub(r"^(\w+:/+)?.*@", r"\1***@", line)


def _read(kind: str) -> tuple[str, str]:
    """The variable <kind>_proxy and its value. As elsewhere, an empty one in lower case hides the one in upper case."""
    name = f"{kind}_proxy"
    variable = name if name in os.environ else name.upper()
    return variable, os.environ.get(variable, "").strip()


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of no_proxy means a host: a name, domain or address, with :port or without, a network, or *."""
    entry = entry.lower().removeprefix("*.").lstrip(".")
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        names = (f".{host}".lower(), f".{host}:{port}".lower())
        return entry == "*" or (bool(entry) and any(name.endswith(f".{entry}") for name in names))


def _fault(url: str) -> str | None:
    """Why a URL is no proxy that can be used."""
    scheme = url.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        return f"a proxy's URL begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # whose message may hold a part of the password
        usable = False
    if not usable:
        return "this is no URL of a proxy, such as http://proxy.example.org:3128"
    if scheme.startswith("socks") and find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio (python -m pip install socksio)"
    return None
