"""Origins of web pages (RFC 6454): parses what an operator allows, and decides whether an Origin matches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

import idna

#: allows all pages, including those without an origin
ANY = "*"

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_WILD = "*."
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_NUMBERS = re.compile(r"([0-9]+|0x[0-9a-f]*)\.?|.*\.([0-9]+|0x[0-9a-f]*)\.?")
#: origins of apps with their own pages, and of browser extensions; no page on the web can have one
_APP = re.compile(r"(?!https?:|wss?:|file:)[a-z][a-z0-9+.-]*://[a-z0-9_.-]+(:[0-9]+)?")
_HINT = "write it like 'https://chat.example', with a port where it is not the scheme's own"


class Origin(NamedTuple):
    """Scheme, host in lower case and without brackets, port. Default ports are filled in."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """The form that a browser sends."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + f":{self.port}" * (self.port != _DEFAULT_PORTS[self.scheme])


def read_origin(text: str) -> Origin | None:
    """Parse an Origin, or a scheme and a Host header put together; None: it is not an origin that can be named."""
    try:
        url = urlsplit(text.strip().lower())
        port = url.port
    except ValueError:
        return None
    if not url.hostname or url.scheme not in _DEFAULT_PORTS:
        return None
    return Origin(url.scheme, url.hostname, port or _DEFAULT_PORTS[url.scheme])


def name_of(origin: str) -> str:
    """An Origin in the form in which an operator would allow it, for people; nothing else that a client sent."""
    app = origin.strip().lower()
    return app if _APP.fullmatch(app) else str(read_origin(origin) or "none that can be named")


def origin_allowed(origin: str, host: str, allowed: Sequence[str]) -> bool:
    """Whether a handshake with this Origin and Host header may proceed (RFC 6455, section 10.2).

    ``allowed`` comes from :func:`parse_origins`. A client without an Origin is not a browser, and may. If nothing is
    configured, only the server's own host may; ``"*"`` allows everyone; otherwise scheme, host and port must be
    equal, with default ports filled in.
    """
    if not origin or ANY in allowed:
        return True
    if _APP.fullmatch(app := origin.strip().lower()):
        return app in allowed
    here = read_origin(origin)
    if here is None:
        return False
    if not allowed:
        # Behind a proxy that terminates TLS, the scheme differs: compare the host, and the port if one is named.
        return here == read_origin(f"{here.scheme}://{host}")
    if _HOST.fullmatch(here.host) is None:
        return ":" in here.host and str(here) in allowed  # an IPv6 address; otherwise no browser sends it
    if str(here) in allowed:
        return True
    # https://*.chat.example covers https://b.chat.example as well as https://a.b.chat.example.
    above = here.host
    while above := above.partition(".")[2]:
        if str(Origin(here.scheme, _WILD + above, here.port)) in allowed:
            return True
    return False


def parse_origins(texts: Iterable[str]) -> tuple[str, ...]:
    """The allowed origins, as browsers send them. Raises ``ValueError`` with a sentence for what no browser ever sends."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> str:
    app = text.strip().lower()
    return app if app == ANY or _APP.fullmatch(app) else str(parse_origin(text))


def parse_origin(text: str) -> Origin:
    """Parse an origin that an operator wrote, possibly with ``*.`` for one or more labels. Raises ``ValueError``."""
    if text.lower() == "null":
        raise ValueError(
            "'null' is what pages without an origin send, sandboxed frames of any site among them: only \"*\" lets it in"
        )
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"'{text}' has no scheme: {_HINT}")
    if scheme not in ("http", "https"):
        raise ValueError(f"'{text}' can be no page's: the scheme is that of the page, http or https; {_HINT}")
    wild = rest.startswith(_WILD)
    authority = rest.removeprefix(_WILD) if wild else rest
    if re.search(r"[/?#@\\\s]", authority):
        raise ValueError(f"'{text}' has more than scheme, host and port, which no browser sends: {_HINT}")
    try:
        url = urlsplit(f"{scheme}://{authority}")
        host, port = _host(url.hostname or ""), url.port
        if port == 0:
            raise ValueError("nobody listens at port 0")
    except ValueError as error:
        raise ValueError(f"'{text}' is no origin ({error}): {_HINT}") from None
    if wild:
        if not re.fullmatch(r"[^.:]+(\.[^.]+)+\.?", host) or _NUMBERS.fullmatch(host):
            raise ValueError(f"'{text}' is too wide: what stands behind '*.' is a name of two labels or more")
        host = _WILD + host
    return Origin(scheme, host, port or _DEFAULT_PORTS[scheme])


def _host(text: str) -> str:
    """A host as browsers write it: addresses in short form, names in lower case, other scripts as A-labels (UTS #46)."""
    if ":" in text:
        return str(IPv6Address(text))
    if not text.isascii():
        text = idna.encode(text, uts46=True).decode()
    text = text.lower()
    if not _HOST.fullmatch(text):
        raise ValueError("a '*' stands for whole labels, in front" if "*" in text else "the host is no name")
    if _NUMBERS.fullmatch(text):
        return str(ip_address(text))
    return text
