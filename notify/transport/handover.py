"""Hands sockets from the process that accepts them to the workers that serve them.

Clients are spread evenly, and limits hold over all processes. The first process accepts and counts: as without
workers, it asks :class:`~notify.transport.admission.Admission`. It then passes the socket, as a descriptor, to the
worker with the fewest clients, over a separate socket pair with one packet per socket. The worker reports over its
link what becomes of it. While no worker takes sockets, the first process serves them itself: it answers 503, and
reports that it is not ready.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.transport.admission import Admission, TurnedAway, Visit
from notify.transport.poller import Poller
from notify.transport.tcp import ACCEPTS, ARRIVING, SETTLED, PacedPort
from notify.workers.frames import Identify, Sockets, Verdict
from notify.workers.link import Link

log = Logger()

#: the most bytes of one packet
_PACKET = 256
_DESCRIPTOR = array.array("i").itemsize
#: seconds until the next attempt if no worker takes a socket
AGAIN = 0.02
#: seconds without accepting when the system is out of files
_PAUSE = 1.0


class Handed(Struct, frozen=True, array_like=True):
    """Sent with a descriptor: the socket's number between the two processes, and its peer's address."""

    number: int
    address: tuple[str | int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Handed).decode


def pair() -> tuple[socket.socket, socket.socket]:
    """The socket pair for descriptors: each is one packet, and either side notices when the other is gone."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in pair:
        one.setblocking(False)
    return pair


@implementer(IReadDescriptor)
class _Reader:
    """Calls ``read`` when a socket is readable."""

    def __init__(self, reactor: Any, sock: socket.socket, read: Callable[[], object]) -> None:
        self._reactor = reactor
        self._socket = sock
        self._read = read

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "sockets"

    def doRead(self) -> None:
        """The socket is readable."""
        self._read()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is stopping and drops its descriptors."""

    def start(self) -> None:
        """Start reading. Does nothing if it already reads."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Stop reading. Does nothing if it does not read."""
        self._reactor.removeReader(self)


class Acceptor:
    """Accepts from a listening socket, few connections a turn, and passes each to a :class:`Doorman`."""

    def __init__(self, reactor: Any, listening: socket.socket, doorman: Doorman) -> None:
        self._reactor = reactor
        self._listening = listening
        self._doorman = doorman
        self._reader = _Reader(reactor, listening, self._accept)
        self._open = False
        self._pausing: Any = None

    def start(self) -> None:
        """Start accepting."""
        self._open = True
        self._reader.start()

    def stop(self) -> None:
        """Stop accepting."""
        self._open = False
        self._reader.stop()
        if self._pausing is not None and self._pausing.active():
            self._pausing.cancel()
        self._doorman.close()

    def _pause(self, seconds: float) -> None:
        """Stop accepting for this long; clients that connect wait in the kernel."""
        self._reader.stop()
        self._pausing = self._reactor.callLater(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._doorman.again():
            self._reader.start()
        else:
            self._pause(AGAIN)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self._listening.accept()
            except (BlockingIOError, ConnectionError, PermissionError):
                return
            except OSError as error:
                log.error("cannot accept connections: {reason}", reason=error.strerror)
                self._pause(_PAUSE)
                return
            sock.setblocking(False)
            if not self._doorman.take(sock, address):
                self._pause(AGAIN)
                return
            if not self._open:
                return


class Adopting(PacedPort):
    """Stands in for a listening port: it makes connections from sockets that were accepted elsewhere."""

    def __init__(self, factory: Any, reactor: Any) -> None:
        super().__init__(0, factory, reactor=reactor)
        self.arriving = Poller(reactor, ARRIVING)
        self.settled = Poller(reactor, SETTLED)
        self._adopted = 0

    def adopt(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Serve this socket."""
        kind = IPv4Address if len(address) == 2 else IPv6Address
        factory: Any = self.factory
        protocol = factory.buildProtocol(kind("TCP", *address))
        if protocol is None:
            sock.close()
            return
        self._adopted += 1
        protocol.makeConnection(self.transport(sock, protocol, address, self, self._adopted, self.reactor))


class Admits(Protocol):
    """Admits sockets: an :class:`~notify.transport.admission.Admission`, or a stand-in for one."""

    def announce(self) -> None:
        """Log the limits in force."""

    def enter(self, peer: str, descriptor: int = -1) -> Visit:
        """A socket was accepted. Raises :class:`~notify.transport.admission.TurnedAway`."""


class Decided:
    """Stands in for the admission where another process has judged the sockets.

    ``verdict`` is its decision on the next one.
    """

    verdict: Visit | TurnedAway

    def announce(self) -> None:
        """Does nothing: the process that decides logs the limits."""

    def enter(self, peer: str, descriptor: int = -1) -> Visit:
        """Apply the decision."""
        if isinstance(self.verdict, TurnedAway):
            raise self.verdict
        return self.verdict


# --- in the first process -----------------------------------------------------------------------------------


class _Desk:
    """A worker that takes sockets, and the sockets that it serves."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.visits: dict[int, Visit] = {}
        self.last = 0  # the number of the socket that it was handed last

    def hand_over(self, sock: socket.socket, handed: Handed) -> bool:
        """Hand it a socket; returns whether the worker took it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        try:
            self.socket.sendmsg([_encode(handed)], rights)
        except OSError:  # full, or gone: then the end of its link tells
            return False
        return True


class Doorman:
    """Admits or refuses sockets, and hands each admitted one to the worker with the fewest, among those that respond.

    ``own`` serves the sockets that no worker takes, and tells refused clients so; ``decided`` is its admission.
    ``silent`` tells which workers have not responded for a while: they are chosen last.
    """

    def __init__(
        self,
        admission: Admission,
        own: Callable[[], Adopting],
        decided: Decided,
        silent: Callable[[Link], bool] = lambda link: False,
    ) -> None:
        self._admission = admission
        self._own = own
        self._decided = decided
        self._silent = silent
        self._desks: dict[Link, _Desk] = {}
        self._number = 0
        self._held: tuple[socket.socket, tuple[Any, ...], Visit] | None = None

    @property
    def open(self) -> int:
        """The number of workers that take sockets."""
        return len(self._desks)

    def loads(self) -> dict[Link, int]:
        """The number of sockets that each worker has."""
        return {link: len(desk.visits) for link, desk in self._desks.items()}

    def serve(self, link: Link, sock: socket.socket) -> None:
        """A worker takes sockets from now on, through ``sock``."""
        desk = self._desks[link] = _Desk(sock)
        link.hear(Sockets, lambda said: self._said(desk, said))
        link.answer(Identify, lambda asked: self._identify(desk, asked))

    def drop(self, link: Link) -> None:
        """A worker is gone, and its sockets with it."""
        desk = self._desks.pop(link, None)
        if desk is not None:
            for visit in desk.visits.values():
                visit.leave()
            desk.visits.clear()

    def take(self, sock: socket.socket, address: tuple[Any, ...]) -> bool:
        """A socket was accepted.

        False: the workers are busy, and it waits until :meth:`again`; no other may be passed before.
        """
        try:
            verdict = self._admission.enter(address[0], sock.fileno())
        except TurnedAway as why:
            self._serve(sock, address, why)
            return True
        return self._hand_over(sock, address, verdict)

    def _hand_over(self, sock: socket.socket, address: tuple[Any, ...], visit: Visit) -> bool:
        if not self._desks:
            self._serve(sock, address, visit)
            return True
        self._number += 1
        handed = Handed(self._number, address)
        # Short-lived clients are work as well: among equally loaded workers, take the one that was chosen longest
        # ago.
        for _, desk in sorted(self._desks.items(), key=self._rank):
            if desk.hand_over(sock, handed):
                desk.visits[handed.number] = visit
                desk.last = handed.number
                sock.close()
                return True
        self._held = sock, address, visit
        return False

    def _rank(self, one: tuple[Link, _Desk]) -> tuple[bool, int, int]:
        link, desk = one
        return self._silent(link), len(desk.visits), desk.last

    def again(self) -> bool:
        """Try again with the socket that waits. False: it still waits."""
        held, self._held = self._held, None
        return held is None or self._hand_over(*held)

    def close(self) -> None:
        """No more sockets come: abandon the one that waits."""
        held, self._held = self._held, None
        if held is not None:
            sock, _, visit = held
            sock.close()
            visit.leave()

    def _serve(self, sock: socket.socket, address: tuple[Any, ...], verdict: Visit | TurnedAway) -> None:
        self._decided.verdict = verdict
        self._own().adopt(sock, address)

    @staticmethod
    def _said(desk: _Desk, said: Sockets) -> None:
        visits = desk.visits
        for number in said.opened:
            if number in visits:
                visits[number].opened()
        for number in said.arrived:
            if number in visits:
                visits[number].arrived()
        for number in said.left:
            if (visit := visits.pop(number, None)) is not None:
                visit.leave()

    @staticmethod
    def _identify(desk: _Desk, asked: Identify) -> Verdict:
        visit = desk.visits.get(asked.socket)
        try:
            if visit is not None:
                visit.identify(asked.address)
        except TurnedAway as why:
            return Verdict(why.reason)
        return Verdict("")


# --- in a worker --------------------------------------------------------------------------------------------


class Receiver:
    """Takes the sockets that are handed over and serves them through ``port``, as many a turn as that accepts.

    ``soon`` calls at the end of the reactor's turn. ``decided`` is the admission of ``port``'s factory.
    """

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        port: Adopting,
        decided: Decided,
        link: Link,
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._socket = sock
        self._port = port
        self._decided = decided
        self._link = link
        self._soon = soon
        self._reader = _Reader(reactor, sock, self._receive)
        self._due = False
        self._opened: list[int] = []
        self._arrived: list[int] = []
        self._left: list[int] = []
        self.start, self.stop = self._reader.start, self._reader.stop

    def _receive(self) -> None:
        for _ in range(self._port.numberAccepts):
            try:
                data, rights, _, _ = self._socket.recvmsg(
                    _PACKET, socket.CMSG_SPACE(_DESCRIPTOR), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, rights = b"", []
            if not data:
                self.stop()  # the first process is gone
                return
            handed = _decode(data)
            descriptors = array.array("i")
            for _, _, found in rights:
                descriptors.frombytes(found[: len(found) - len(found) % _DESCRIPTOR])
            if not descriptors:
                log.error("a socket could not be taken: too many files are open")
                self.say(self._left, handed.number)
                continue
            self._decided.verdict = _Visitor(self, handed)
            self._port.adopt(socket.socket(fileno=descriptors[0]), handed.address)

    # --- for visits -----------------------------------------------------------------------------------------

    def say(self, what: list[int], number: int) -> None:
        """Tell the first process what has become of a socket."""
        what.append(number)
        if not self._due:
            self._due = True
            self._soon(self._tell)

    def _tell(self) -> None:
        self._due = False
        self._link.say(Sockets(self._opened, self._arrived, self._left))
        self._opened, self._arrived, self._left = [], [], []

    def opened(self, number: int) -> None:
        """A socket's opening handshake is complete."""
        self.say(self._opened, number)

    def arrived(self, number: int) -> None:
        """A socket's client has presented a valid token."""
        self.say(self._arrived, number)

    def left(self, number: int) -> None:
        """A socket is gone."""
        self.say(self._left, number)

    def identify(self, number: int, address: str) -> Deferred[None]:
        """A socket's client has this address. Errback :class:`~notify.transport.admission.TurnedAway`."""

        def judged(verdict: Verdict) -> None:
            if verdict.reason:
                raise TurnedAway(verdict.reason)

        return self._link.ask(Identify(number, address)).addCallback(judged)


class _Visitor(Visit):
    """A socket that the first process admitted, and counts."""

    __slots__ = ("_gone", "_number", "_peer", "_receiver")

    def __init__(self, receiver: Receiver, handed: Handed) -> None:
        self._receiver = receiver
        self._number = handed.number
        self._peer = str(handed.address[0])
        self._gone = False
        self._shaking = self._arriving = True

    def identify(self, address: str) -> Deferred[None] | None:
        """See :class:`~notify.transport.admission.Visit`. The address it was accepted from is already counted."""
        return None if address == self._peer else self._receiver.identify(self._number, address)

    def opened(self) -> None:
        """See :class:`~notify.transport.admission.Visit`."""
        if self._shaking:
            self._shaking = False
            self._receiver.opened(self._number)

    def arrived(self) -> None:
        """See :class:`~notify.transport.admission.Visit`."""
        if self._arriving:
            self._arriving = False
            self._receiver.arrived(self._number)

    def leave(self) -> None:
        """See :class:`~notify.transport.admission.Visit`."""
        if not self._gone:
            self._gone = True
            self._shaking = self._arriving = False
            self._receiver.left(self._number)
