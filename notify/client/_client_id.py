"""The name that a client has for proxies, which hash on it to lead the client back to its node: docs/client.md, rule 25."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

#: bytes of randomness in a name, and in what a name of the program's own is followed by
WHOLE, SUFFIX = 12, 6
_FORM = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: characters of the program's own name that a suffix leaves room for
_KEPT = 55


class ClientId:
    """``given`` is the program's own; None: a random one. Raises ``ValueError`` where it is not of the form.

    ``draw`` gives text of so many random bytes. The system's randomness: processes that were forked, or seeded alike, must not all
    be led to one node.
    """

    def __init__(self, given: str | None, draw: Callable[[int], str] = secrets.token_urlsafe) -> None:
        if given is not None and not _FORM.fullmatch(given):
            raise ValueError("client_id: 1 to 64 of A-Z a-z 0-9 _ -")
        self._given, self._draw = given, draw
        self.value = draw(WHOLE) if given is None else given

    def move(self) -> None:
        """Have another one, which may lead elsewhere."""
        if self._given is None:
            self.value = self._draw(WHOLE)
        else:
            self.value = f"{self._given[:_KEPT]}-{self._draw(SUFFIX)}"
