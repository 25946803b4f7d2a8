"""How fast one address may guess keys. Pure: whoever asks brings the time, in seconds."""

from __future__ import annotations

from collections import OrderedDict

from notify.wire import addresses

#: wrong keys from one address at once, and more of them a second after that
AT_ONCE = 10
A_SECOND = 0.5

#: addresses, and pairs of an address and a good key, that are remembered
MOST = 10_000


def group(host: str) -> bytes:
    """What a host counts by; those that have no address are one."""
    address = addresses.parse(host)
    return b"" if address is None else addresses.block(address)


class Guesses:
    """A leaky bucket of wrong keys for each address.

    Whoever is over it is not even looked at, good key or not: else a guess would be worth as much as before. Only a key
    that was good from that address before still is, so that a backend does not suffer from its neighbour.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[bytes, tuple[float, float]] = (
            OrderedDict()
        )  # how many are in it, and when that was so
        self._good: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait(self, host: str, digest: bytes, now: float) -> float:
        """The seconds until this address may try this key; 0: now."""
        if not self._wrong or (host, digest) in self._good:
            return 0.0
        return max(0.0, (self._level(group(host), now) - AT_ONCE + 1) / A_SECOND)

    def right(self, host: str, digest: bytes) -> None:
        """A key was good."""
        if (host, digest) not in self._good:
            self._good[host, digest] = None
            if len(self._good) > MOST:
                self._good.popitem(last=False)

    def wrong(self, host: str, digest: bytes, now: float) -> None:
        """A key was not."""
        self._good.pop((host, digest), None)
        address = group(host)
        self._wrong[address] = (self._level(address, now) + 1, now)
        self._wrong.move_to_end(address)
        if len(self._wrong) > MOST:
            self._wrong.popitem(last=False)

    def _level(self, address: bytes, now: float) -> float:
        level, at = self._wrong.get(address, (0.0, now))
        return max(0.0, level - (now - at) * A_SECOND)
