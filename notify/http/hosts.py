"""By which names the internal listener may be asked for what needs no key and is nobody's business.

A page in a browser can have its own name lead to any address of the network that the browser is in, and then reads
what a server there answers without asking for more (DNS rebinding). It cannot do so with an address, with a name of one
label, or with a name that nobody can register.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from notify.http.answers import Refused

#: what no public registry gives names under (RFC 6761, RFC 6762; ICANN for "internal"; Kubernetes' "svc")
_PRIVATE = frozenset(("localhost", "local", "internal", "test", "svc"))


class Hosts:
    """Judges Host headers. ``names`` are good beside those that can be nobody else's."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def check(self, host: str) -> None:
        """Raise :class:`~notify.http.answers.Refused`, 403, for a host that may be a stranger's. None at all is good: a
        browser sends one.
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
                "ask by an address, by a name of one label, or by one that listen.internal_hosts has",
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
