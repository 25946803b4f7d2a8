"""Who may come in: each socket of the public port counts from its accept to its end, and so does the address it comes from.

Pure: whoever asks brings addresses and descriptors. An address is one of IPv4, or a /64 of IPv6. That of a socket is its
client's, unless a trusted proxy is at its other end: then X-Forwarded-For tells it, with the opening handshake. Addresses
of this machine and of private networks are not limited, for an undeclared proxy may be there, with everybody behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.config import Limits
from notify.wire import addresses
from notify.wire.addresses import Network

log = Logger()

#: files that a process may have open beside the sockets of its public port; a quarter of all where they are few
RESERVE = 200
#: seconds without a refusal of its kind before one is said again
QUIET = 60.0
#: addresses that are kept before those that nothing is known of any more are looked for
FEW = 1024

#: why a socket is refused, and what the log says of it
REASONS = {
    "files": "all files but a reserve are open: raise the limit (LimitNOFILE), or lower limits.max_connections",
    "full": "limits.max_connections is reached",
    "arriving": "limits.max_arriving is reached by those in the opening handshake",
    "address_connections": "{address} is over limits.max_connections_per_address",
    "address_arriving": "{address} is over limits.max_arriving_per_address",
    "address_handshakes": "{address} is over limits.handshakes_per_second",
}


class TurnedAway(Exception):  # noqa: N818
    """A socket is refused, for one of :data:`REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def alone(self) -> bool:
        """Whether it is for its address, and others may come."""
        return self.reason.startswith("address_")


def reserve(files: int) -> int:
    """How many of so many files are not for sockets of the public port."""
    return min(RESERVE, files // 4)


def most(limits: Limits, files: int) -> int:
    """How many connections there may be where so many files may be open; 0: no limit but that of files."""
    return files - reserve(files) if limits.max_connections == "auto" else limits.max_connections


class _Address:
    """What comes from one address, and how many ``handshakes`` it had left ``at`` a time."""

    __slots__ = ("arriving", "at", "connections", "handshakes")

    def __init__(self, handshakes: float, at: float) -> None:
        self.connections = self.arriving = 0
        self.handshakes = handshakes
        self.at = at

    def earn(self, limits: Limits, now: float) -> None:
        """Handshakes are earned at a rate, up to a burst. A clock that was set back earns nothing, and costs nothing."""
        earned = max(0.0, now - self.at) * limits.handshakes_per_second
        self.handshakes = min(limits.handshakes_burst, self.handshakes + earned)
        self.at = now


class Admission:
    """Counts, and says no.

    ``limits`` and ``trusted`` give what is in force, ``files`` how many files may be open, ``seconds`` the time of a clock;
    ``counted`` is told how many sockets there are, and ``refused`` the reason of each refusal.
    """

    def __init__(
        self,
        limits: Callable[[], Limits],
        trusted: Callable[[], Sequence[Network]],
        files: Callable[[], int],
        seconds: Callable[[], float],
        counted: Callable[[int], object],
        refused: Callable[[str], object],
    ) -> None:
        self.sockets = 0
        #: of these, those that have not ended their opening handshake
        self.arriving = 0
        self._limits = limits
        self._trusted = trusted
        self._files = files
        self._seconds = seconds
        self._counted = counted
        self._refused = refused
        self._addresses: dict[bytes, _Address] = {}
        self._many = FEW
        self._said: dict[str, float] = {}

    def announce(self) -> None:
        """Say to the log what holds."""
        files, limits = self._files(), self._limits()
        log.info(
            "at most {most} connections, {files} files may be open; limits per address hold for public addresses, "
            "and behind the proxies of listen.trusted_proxies ({proxies}), not for other private ones",
            most=most(limits, files) or "any number of",
            files=files,
            proxies=len(self._trusted()) or "none",
        )

    def enter(self, peer: str, descriptor: int = -1) -> Visit:
        """A socket was accepted. Raises :class:`TurnedAway`.

        ``peer`` is its other end's address, empty where it has none. The kernel gives the lowest descriptor that is
        free, so ``descriptor`` says how many files are open; -1: it has none.
        """
        limits, files = self._limits(), self._files()
        if descriptor >= files - reserve(files) // 2:
            self._refuse("files")
        if 0 < most(limits, files) <= self.sockets:
            self._refuse("full")
        if 0 < limits.max_arriving <= self.arriving:
            self._refuse("arriving")
        visit = Visit(self, self._count(limits, peer))
        self.sockets += 1
        self.arriving += 1
        self._counted(self.sockets)
        return visit

    # --- for a visit ----------------------------------------------------------------------------------------

    def identify(self, address: str) -> bytes | None:
        """A socket turns out to be of this address; by what it counts, if by anything."""
        return self._count(self._limits(), address)

    def opened(self) -> None:
        """An opening handshake is done."""
        self.arriving -= 1

    def arrived(self, block: bytes) -> None:
        """A client of this address has shown a good token."""
        self._addresses[block].arriving -= 1

    def left(self, block: bytes | None) -> None:
        """A socket is gone."""
        self.sockets -= 1
        self._counted(self.sockets)
        if block is not None:
            # What is left of it goes with `_forget`.
            self._addresses[block].connections -= 1

    # --- addresses ------------------------------------------------------------------------------------------

    def _count(self, limits: Limits, text: str) -> bytes | None:
        address = addresses.parse(text)
        if address is None or addresses.is_inside(address) or addresses.is_in(address, self._trusted()):
            return None
        block, now = addresses.block(address), self._seconds()
        one = self._addresses.get(block) or _Address(limits.handshakes_burst, now)
        if 0 < limits.max_connections_per_address <= one.connections:
            self._refuse("address_connections", text)
        if 0 < limits.max_arriving_per_address <= one.arriving:
            self._refuse("address_arriving", text)
        if limits.handshakes_per_second:
            one.earn(limits, now)
            if one.handshakes < 1:
                self._refuse("address_handshakes", text)
            one.handshakes -= 1
        one.connections += 1
        one.arriving += 1
        self._addresses[block] = one
        if len(self._addresses) > self._many:
            self._forget(limits, now)
        return block

    def _forget(self, limits: Limits, now: float) -> None:
        for block, one in list(self._addresses.items()):
            one.earn(limits, now)
            if not one.connections and one.handshakes >= limits.handshakes_burst:
                del self._addresses[block]
        self._many = max(FEW, 2 * len(self._addresses))

    def _refuse(self, reason: str, address: str = "") -> None:
        self._refused(reason)
        now = self._seconds()
        before = self._said.get(reason)
        self._said[reason] = now
        if before is None or not 0 <= now - before < QUIET:
            log.warn(
                "connections are refused: " + REASONS[reason],
                reason=reason,
                address=address,
            )
        raise TurnedAway(reason)


class Visit:
    """A socket that was let in. What it counts as is given back step by step, and the rest when it leaves."""

    __slots__ = ("_admission", "_arriving", "_block", "_shaking")

    def __init__(self, admission: Admission, block: bytes | None) -> None:
        self._admission: Admission | None = admission
        self._block = block
        self._shaking = True
        self._arriving = block is not None

    def identify(self, address: str) -> Deferred[None] | None:
        """Its opening handshake tells where its client is. Raises :class:`TurnedAway`; it is yet to leave then.

        Where another process has to be asked: a Deferred, with the same errback.
        """
        if self._block is None and self._admission is not None:
            self._block = self._admission.identify(address)
            self._arriving = self._block is not None
        return None

    def opened(self) -> None:
        """Its opening handshake is done. Harmless when called again, like what follows."""
        if self._shaking and self._admission is not None:
            self._shaking = False
            self._admission.opened()

    def arrived(self) -> None:
        """Its client has shown a good token."""
        if self._arriving and self._admission is not None and self._block is not None:
            self._arriving = False
            self._admission.arrived(self._block)

    def leave(self) -> None:
        """It is gone."""
        self.opened()
        self.arrived()
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.left(self._block)
