"""The client id. Proxies hash it to route a reconnecting client to the same node: docs/client.md, rule 25."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

#: bytes of randomness in a random id, and in the suffix added to the application's own id
WHOLE, SUFFIX = 12, 6
_FORM = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: characters of the application's own id that leave room for a suffix
_KEPT = 55


class ClientId:
    """``given`` is the application's own id; None stands for a random one. Raises ``ValueError`` if it is malformed.

    ``draw`` returns text made of that many random bytes. It uses the system's randomness, because processes that were forked or
    seeded alike must not all be routed to the same node.
    """

    def __init__(self, given: str | None, draw: Callable[[int], str] = secrets.token_urlsafe) -> None:
        if given is not None and not _FORM.fullmatch(given):
            raise ValueError("client_id: 1 to 64 of A-Z a-z 0-9 _ -")
        self._given, self._draw = given, draw
        self.value = draw(WHOLE) if given is None else given

    def move(self) -> None:
        """Change the id, so that a proxy may route the client to another node."""
        if self._given is None:
            self.value = self._draw(WHOLE)
        else:
            self.value = f"{self._given[:_KEPT]}-{self._draw(SUFFIX)}"
