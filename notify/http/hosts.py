"""The host names under which the internal listener answers requests that need no key.

A web page can make its own host name resolve to any address in the browser's network, and then read what a server
there answers without a key (DNS rebinding). It cannot do so with an address, a single-label name, or a name that
nobody can register.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from notify.http.answers import Refused

#: domains under which no public registry assigns names (RFC 6761, RFC 6762; ICANN for "internal"; Kubernetes' "svc")
_PRIVATE = frozenset(("localhost", "local", "internal", "test", "svc"))


class Hosts:
    """Judges Host headers. ``names`` are allowed in addition to those that nobody else can own."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def check(self, host: str) -> None:
        """Raise :class:`~notify.http.answers.Refused`, 403, for a host that may belong to somebody else.

        A missing header is allowed, since a browser always sends one.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
            good = not name or name in self._names or self._is_private(name)
        except ValueError:
            good = False
        if not good:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                "request this by an IP address, by a name without dots, or by a name in listen.internal_hosts",
            )

    @staticmethod
    def _is_private(name: str) -> bool:
        last = name.rpartition(".")[2]
        if last == name or last in _PRIVATE:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True
