"""Which message was published under which key: another one under the same would never be stored, and nobody told."""

from __future__ import annotations

import json
from collections.abc import Collection
from hashlib import blake2b

#: keys that are remembered at a time: some 250 bytes each
MOST_KEYS = 10_000


def digest(body: bytes, without: Collection[str] = ()) -> tuple[bytes, bytes]:
    """What tells keys apart, which count for a subject, and what tells messages apart: their JSON, whatever the order of its fields,
    ``without`` those that are made anew for each publish.
    """
    message = json.loads(body)
    payload = {name: value for name, value in message["payload"].items() if name not in without}
    return _hash(message["subject"]), _hash(json.dumps(payload, sort_keys=True))


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Keys:
    """Those of the last ``window`` seconds: for as long the server remembers them, too."""

    def __init__(self, window: float) -> None:
        self._window = window
        #: since when, and for what, the oldest first
        self._used: dict[tuple[bytes, str], tuple[float, bytes]] = {}

    def owner(self, subject: bytes, key: str, now: float) -> bytes | None:
        """The message that it is used for; None: it is free."""
        while self._used:
            oldest = next(iter(self._used))
            if self._used[oldest][0] > now - self._window and len(self._used) <= MOST_KEYS:
                break
            del self._used[oldest]
        found = self._used.get((subject, key))
        return None if found is None else found[1]

    def use(self, subject: bytes, key: str, message: bytes, now: float) -> None:
        """It is this message's from now on, unless it was before."""
        self._used.setdefault((subject, key), (now, message))

    def forget(self, subject: bytes, key: str) -> None:
        """Nothing of the message is stored: the key is free again."""
        self._used.pop((subject, key), None)
