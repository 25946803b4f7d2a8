"""Sockets that one process accepts and another serves: clients spread evenly, and limits that hold over all processes.

The first process accepts, and counts: :class:`~notify.transport.admission.Admission` is asked there, as without workers. It
hands a socket to the worker that has the fewest, as a descriptor over a socket pair of its own with one packet a socket.
The worker says over its link what becomes of it. While no worker takes any, the first process serves it itself: it answers
503, and what is not ready says so.
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

#: bytes of one packet
_PACKET = 256
_DESCRIPTOR = array.array("i").itemsize
#: seconds until it is tried again where no worker takes a socket
AGAIN = 0.02
#: seconds without accepting when the system has no more files
_PAUSE = 1.0


class Handed(Struct, frozen=True, array_like=True):
    """What goes with a descriptor: the socket's number between the two, and its other end's address."""

    number: int
    address: tuple[str | int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Handed).decode


def pair() -> tuple[socket.socket, socket.socket]:
    """What descriptors go through: one packet a descriptor, and the end is seen."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in pair:
        one.setblocking(False)
    return pair


@implementer(IReadDescriptor)
class _Reader:
    """Calls ``read`` for a socket that is readable."""

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
        """The reactor takes no more descriptors: it stops."""

    def start(self) -> None:
        """Read from now on. Harmless when it does."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Read no more. Harmless when it does not."""
        self._reactor.removeReader(self)


class Acceptor:
    """Accepts from a listening socket, few connections a turn, and gives each to a :class:`Doorman`."""

    def __init__(self, reactor: Any, listening: socket.socket, doorman: Doorman) -> None:
        self._reactor = reactor
        self._listening = listening
        self._doorman = doorman
        self._reader = _Reader(reactor, listening, self._accept)
        self._open = False
        self._pausing: Any = None

    def start(self) -> None:
        """Accept."""
        self._open = True
        self._reader.start()

    def stop(self) -> None:
        """Accept no more."""
        self._open = False
        self._reader.stop()
        if self._pausing is not None and self._pausing.active():
            self._pausing.cancel()
        self._doorman.close()

    def _pause(self, seconds: float) -> None:
        """Accept none for so long; who connects waits."""
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
    """Stands in for a listening port: it makes connections of sockets that were accepted elsewhere."""

    def __init__(self, factory: Any, reactor: Any) -> None:
        super().__init__(0, factory, reactor=reactor)
        self.arriving = Poller(reactor, ARRIVING)
        self.settled = Poller(reactor, SETTLED)
        self._adopted = 0

    def adopt(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Serve this one."""
        kind = IPv4Address if len(address) == 2 else IPv6Address
        factory: Any = self.factory
        protocol = factory.buildProtocol(kind("TCP", *address))
        if protocol is None:
            sock.close()
            return
        self._adopted += 1
        protocol.makeConnection(self.transport(sock, protocol, address, self, self._adopted, self.reactor))


class Admits(Protocol):
    """Who lets sockets in: an :class:`~notify.transport.admission.Admission`, or what stands in for it."""

    def announce(self) -> None:
        """Say to the log what holds."""

    def enter(self, peer: str, descriptor: int = -1) -> Visit:
        """A socket is there. Raises :class:`~notify.transport.admission.TurnedAway`."""


class Decided:
    """Stands in for the admission where a socket was judged before it came: ``verdict`` is what was found of the next."""

    verdict: Visit | TurnedAway

    def announce(self) -> None:
        """Nothing: it is said where it is decided."""

    def enter(self, peer: str, descriptor: int = -1) -> Visit:
        """What was decided."""
        if isinstance(self.verdict, TurnedAway):
            raise self.verdict
        return self.verdict


# --- in the first process -----------------------------------------------------------------------------------


class _Desk:
    """A worker that takes sockets, and those that it has."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.visits: dict[int, Visit] = {}
        self.last = 0  # the number of the socket that it was handed last

    def hand_over(self, sock: socket.socket, handed: Handed) -> bool:
        """Whether it took a socket."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        try:
            self.socket.sendmsg([_encode(handed)], rights)
        except OSError:  # full, or gone: which the end of its link says
            return False
        return True


class Doorman:
    """Lets sockets in, or not, and hands each to the worker that has the fewest, of those that answer.

    ``own`` serves those that nobody takes, and tells those that are refused so; ``decided`` is its admission; ``silent`` says which
    workers have not answered for a while: they are last.
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
        """How many workers take sockets."""
        return len(self._desks)

    def loads(self) -> dict[Link, int]:
        """How many sockets each has."""
        return {link: len(desk.visits) for link, desk in self._desks.items()}

    def serve(self, link: Link, sock: socket.socket) -> None:
        """A worker takes sockets from now on, which go through ``sock``."""
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
        """A socket was accepted. False: it waits until :meth:`again`, for the workers are busy; no other must come before."""
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
        # Those who leave again at once are work, too: of several with as few, it is another's turn.
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
        """Try again with the one that waits; False: it still does."""
        held, self._held = self._held, None
        return held is None or self._hand_over(*held)

    def close(self) -> None:
        """No more come: the one that waits is given up."""
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
    """Takes the sockets that are handed over, and serves them by ``port``, as many a turn as that accepts.

    ``soon`` calls at the end of the reactor's turn; ``decided`` is the admission of what ``port`` serves.
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

    # --- for a visit ----------------------------------------------------------------------------------------

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
        """Its opening handshake is done."""
        self.say(self._opened, number)

    def arrived(self, number: int) -> None:
        """Its client has shown a good token."""
        self.say(self._arrived, number)

    def left(self, number: int) -> None:
        """It is gone."""
        self.say(self._left, number)

    def identify(self, number: int, address: str) -> Deferred[None]:
        """It is of this address. Errback :class:`~notify.transport.admission.TurnedAway`."""

        def judged(verdict: Verdict) -> None:
            if verdict.reason:
                raise TurnedAway(verdict.reason)

        return self._link.ask(Identify(number, address)).addCallback(judged)


class _Visitor(Visit):
    """A socket that the first process let in, and counts."""

    __slots__ = ("_gone", "_number", "_peer", "_receiver")

    def __init__(self, receiver: Receiver, handed: Handed) -> None:
        self._receiver = receiver
        self._number = handed.number
        self._peer = str(handed.address[0])
        self._gone = False
        self._shaking = self._arriving = True

    def identify(self, address: str) -> Deferred[None] | None:
        """See :class:`~notify.transport.admission.Visit`: what it was accepted from has been counted."""
        return None if address == self._peer else self._receiver.identify(self._number, address)

    def opened(self) -> None:
        """See there."""
        if self._shaking:
            self._shaking = False
            self._receiver.opened(self._number)

    def arrived(self) -> None:
        """See there."""
        if self._arriving:
            self._arriving = False
            self._receiver.arrived(self._number)

    def leave(self) -> None:
        """See there."""
        if not self._gone:
            self._gone = True
            self._shaking = self._arriving = False
            self._receiver.left(self._number)
