"""Remembers which key belongs to which message: the server would silently drop another message under the same key."""

from __future__ import annotations

import json
from collections.abc import Collection
from hashlib import blake2b

#: how many keys are remembered; each takes some 250 bytes
MOST_KEYS = 10_000


def digest(body: bytes, without: Collection[str] = ()) -> tuple[bytes, bytes]:
    """Return two digests: of the subject, to which keys are scoped, and of the message's JSON, whatever the order of its fields.

    ``without`` names fields that are generated for each publish and therefore left out.
    """
    message = json.loads(body)
    payload = {name: value for name, value in message["payload"].items() if name not in without}
    return _hash(message["subject"]), _hash(json.dumps(payload, sort_keys=True))


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Keys:
    """The keys used within the last ``window`` seconds, which is how long the server also remembers them."""

    def __init__(self, window: float) -> None:
        self._window = window
        #: when each key was first used and for which message, oldest first
        self._used: dict[tuple[bytes, str], tuple[float, bytes]] = {}

    def owner(self, subject: bytes, key: str, now: float) -> bytes | None:
        """The message that the key belongs to, or None if the key is free."""
        while self._used:
            oldest = next(iter(self._used))
            if self._used[oldest][0] > now - self._window and len(self._used) <= MOST_KEYS:
                break
            del self._used[oldest]
        found = self._used.get((subject, key))
        return None if found is None else found[1]

    def use(self, subject: bytes, key: str, message: bytes, now: float) -> None:
        """Assign the key to this message, unless it already belongs to one."""
        self._used.setdefault((subject, key), (now, message))

    def forget(self, subject: bytes, key: str) -> None:
        """Free the key again, because nothing of its message was stored."""
        self._used.pop((subject, key), None)
