"""Limits how fast one address may guess keys. Pure: the caller passes the time, in seconds."""

from __future__ import annotations

from collections import OrderedDict

from notify.wire import addresses

#: wrong keys from one address: burst, and rate a second after that
AT_ONCE = 10
A_SECOND = 0.5

#: addresses, and pairs of an address and a valid key, that are remembered
MOST = 10_000


def group(host: str) -> bytes:
    """The unit by which a host is counted; all hosts without an address count as one."""
    address = addresses.parse(host)
    return b"" if address is None else addresses.block(address)


class Guesses:
    """A leaky bucket of wrong keys for each address.

    Past the limit, an address's keys are not checked, valid or not; otherwise guessing would be as useful as before.
    The exception is a key that was valid from the same address earlier, so that a backend does not suffer from its
    neighbour.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[bytes, tuple[float, float]] = (
            OrderedDict()
        )  # the level, and when it was that high
        self._good: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait(self, host: str, digest: bytes, now: float) -> float:
        """The seconds until this address may try this key; 0: now."""
        if not self._wrong or (host, digest) in self._good:
            return 0.0
        return max(0.0, (self._level(group(host), now) - AT_ONCE + 1) / A_SECOND)

    def right(self, host: str, digest: bytes) -> None:
        """The key was valid."""
        if (host, digest) not in self._good:
            self._good[host, digest] = None
            if len(self._good) > MOST:
                self._good.popitem(last=False)

    def wrong(self, host: str, digest: bytes, now: float) -> None:
        """The key was wrong."""
        self._good.pop((host, digest), None)
        address = group(host)
        self._wrong[address] = (self._level(address, now) + 1, now)
        self._wrong.move_to_end(address)
        if len(self._wrong) > MOST:
            self._wrong.popitem(last=False)

    def _level(self, address: bytes, now: float) -> float:
        level, at = self._wrong.get(address, (0.0, now))
        return max(0.0, level - (now - at) * A_SECOND)
