"""Admission: each socket of the public port counts from accept to close, and so does the address it comes from.

Pure: the caller passes addresses and descriptors. An address is an IPv4 address or an IPv6 /64. A socket's address is
its client's unless a trusted proxy is its peer; X-Forwarded-For then tells the client's address in the opening
handshake. Addresses of this machine and of private networks are not limited, because an undeclared proxy may be
there, with all clients behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.config import Limits
from notify.wire import addresses
from notify.wire.addresses import Network

log = Logger()

#: files reserved for other uses than sockets of the public port; a quarter of all if the limit is low
RESERVE = 200
#: seconds without a refusal of the same kind before another is logged
QUIET = 60.0
#: addresses that are kept before idle ones are looked for and dropped
FEW = 1024

#: the reasons for refusing a socket, and what the log says
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
        """Whether the reason concerns only its address, so that others may still connect."""
        return self.reason.startswith("address_")


def reserve(files: int) -> int:
    """The number of files, of so many, that sockets of the public port may not use."""
    return min(RESERVE, files // 4)


def most(limits: Limits, files: int) -> int:
    """The most connections with this limit of open files; 0: only the limit of files applies."""
    return files - reserve(files) if limits.max_connections == "auto" else limits.max_connections


class _Address:
    """The sockets of one address, and how many ``handshakes`` it had left ``at`` a time."""

    __slots__ = ("arriving", "at", "connections", "handshakes")

    def __init__(self, handshakes: float, at: float) -> None:
        self.connections = self.arriving = 0
        self.handshakes = handshakes
        self.at = at

    def earn(self, limits: Limits, now: float) -> None:
        """Add the handshakes earned since then, up to the burst.

        A clock that was set back neither earns nor costs anything.
        """
        earned = max(0.0, now - self.at) * limits.handshakes_per_second
        self.handshakes = min(limits.handshakes_burst, self.handshakes + earned)
        self.at = now


class Admission:
    """Counts sockets and refuses those beyond the limits.

    ``limits`` and ``trusted`` return what is in force, ``files`` how many files may be open, ``seconds`` the time of
    a clock. ``counted`` is told the number of sockets, and ``refused`` the reason of each refusal.
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
        #: of these, those that have not completed their opening handshake
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
        """Log the limits in force."""
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

        ``peer`` is the address of its other end, empty if it has none. ``descriptor`` tells how many files are open,
        because the kernel gives out the lowest one that is free; -1: it has none.
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

    # --- for visits -----------------------------------------------------------------------------------------

    def identify(self, address: str) -> bytes | None:
        """A socket turns out to be of this address. Returns the block that it counts for, if any."""
        return self._count(self._limits(), address)

    def opened(self) -> None:
        """An opening handshake is complete."""
        self.arriving -= 1

    def arrived(self, block: bytes) -> None:
        """A client of this address has presented a valid token."""
        self._addresses[block].arriving -= 1

    def left(self, block: bytes | None) -> None:
        """A socket is gone."""
        self.sockets -= 1
        self._counted(self.sockets)
        if block is not None:
            # `_forget` removes what is left of it.
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
    """A socket that was admitted.

    It stops counting towards each limit as it moves on, and towards the rest when it leaves.
    """

    __slots__ = ("_admission", "_arriving", "_block", "_shaking")

    def __init__(self, admission: Admission, block: bytes | None) -> None:
        self._admission: Admission | None = admission
        self._block = block
        self._shaking = True
        self._arriving = block is not None

    def identify(self, address: str) -> Deferred[None] | None:
        """The opening handshake tells the client's address.

        Raises :class:`TurnedAway`; the visit must then still leave. If another process must be asked, returns a
        Deferred with the same errback.
        """
        if self._block is None and self._admission is not None:
            self._block = self._admission.identify(address)
            self._arriving = self._block is not None
        return None

    def opened(self) -> None:
        """The opening handshake is complete. A second call does nothing; the same holds for the methods below."""
        if self._shaking and self._admission is not None:
            self._shaking = False
            self._admission.opened()

    def arrived(self) -> None:
        """The client has presented a valid token."""
        if self._arriving and self._admission is not None and self._block is not None:
            self._arriving = False
            self._admission.arrived(self._block)

    def leave(self) -> None:
        """The socket is gone."""
        self.opened()
        self.arrived()
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.left(self._block)
