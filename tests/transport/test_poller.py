"""Connections behind a poller, on real sockets: fairness, pauses, and every kind of end."""

from __future__ import annotations

import errno
import gc
import socket
import struct
from typing import Any
from unittest import skipUnless

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from notify.core.timers import Wheel
from notify.service.garbage import THRESHOLDS, Collector
from notify.transport import poller
from notify.transport import tcp as transport


class Recorder(Protocol):
    def __init__(self, case: PollerTests) -> None:
        self.case = case

    def connectionMade(self) -> None:
        self.case.made.append(self)
        self.case.changed()

    def dataReceived(self, data: bytes) -> None:
        self.case.got.append(data)
        self.case.changed()
        if data == b"raise":
            self.case.flush = True
            raise ZeroDivisionError

    def connectionLost(self, reason: Any = None) -> None:
        self.case.lost.append(reason.value)
        self.case.changed()


@skipUnless(poller.available(), "no epoll here")
class PollerTests(TestCase):
    timeout = 30

    async def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.made: list[Any] = []
        self.got: list[bytes] = []
        self.lost: list[BaseException] = []
        self.flush = False
        self.waiting: tuple[Any, Deferred[None]] | None = None
        self.port: Any = self.reactor.listenTCP(
            0, Factory.forProtocol(lambda: Recorder(self)), interface="127.0.0.1"
        )
        transport.paced(self.port, reactor)
        self.clients: list[socket.socket] = []

    async def tearDown(self) -> None:
        for client in self.clients:
            client.close()
        await self.until(lambda: len(self.lost) == len(self.made))
        await self.port.stopListening()
        if self.flush:
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def changed(self) -> None:
        if self.waiting is not None and self.waiting[0]():
            waiting, self.waiting = self.waiting[1], None
            waiting.callback(None)

    async def until(self, condition: Any) -> None:
        if not condition():
            self.waiting = (condition, Deferred())
            await self.waiting[1]

    async def connect(self, count: int = 1) -> list[socket.socket]:
        new = [socket.create_connection(("127.0.0.1", self.port.getHost().port)) for _ in range(count)]
        self.clients += new
        await self.until(lambda: len(self.made) == len(self.clients))
        return new

    async def test_bytes_arrive_before_and_after_settling(self) -> None:
        [client] = await self.connect()
        client.sendall(b"one")
        await self.until(lambda: self.got == [b"one"])
        transport.settle(self.made[0].transport)
        transport.settle(self.made[0].transport)
        client.sendall(b"two")
        await self.until(lambda: self.got == [b"one", b"two"])
        self.assertIs(self.made[0].transport.reactor, self.port.settled)

    async def test_who_is_settled_does_not_wait_for_all_that_arrive(self) -> None:
        [early] = await self.connect()
        transport.settle(self.made[0].transport)
        crowd = await self.connect(transport.ARRIVING * 4)
        for one in crowd:
            one.sendall(b"crowd")
        early.sendall(b"early")
        await self.until(lambda: len(self.got) == len(crowd) + 1)
        self.assertLessEqual(self.got.index(b"early"), transport.ARRIVING)

    async def test_a_pause_holds_over_settling(self) -> None:
        [client] = await self.connect()
        server = self.made[0].transport
        server.pauseProducing()
        transport.settle(server)
        client.sendall(b"later")
        await deferLater(self.reactor, 0.05, lambda: None)
        self.assertEqual(self.got, [])
        server.resumeProducing()
        await self.until(lambda: self.got == [b"later"])

    async def test_all_ends_are_noticed(self) -> None:
        done, reset, fails = await self.connect(3)
        transport.settle(self.made[1].transport)
        done.close()
        await self.until(lambda: len(self.lost) == 1)
        self.assertIsInstance(self.lost[0], ConnectionDone)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        await self.until(lambda: len(self.lost) == 2)
        self.assertNotIsInstance(self.lost[1], ConnectionDone)
        fails.sendall(b"raise")
        await self.until(lambda: len(self.lost) == 3)
        self.assertIsInstance(self.lost[2], ZeroDivisionError)

    async def test_closing_from_this_side_is_complete(self) -> None:
        [polite, rude] = await self.connect(2)
        self.made[0].transport.write(b"bye")
        self.made[0].transport.loseConnection()
        self.made[1].transport.abortConnection()
        await self.until(lambda: len(self.lost) == 2)
        self.assertEqual(polite.recv(10), b"bye")
        self.assertEqual(polite.recv(10), b"")
        self.assertRaises(ConnectionResetError, rude.recv, 10)

    async def test_an_idle_poller_is_not_in_the_reactor(self) -> None:
        self.assertNotIn(self.port.arriving, self.reactor.getReaders())
        [client] = await self.connect()
        self.assertIn(self.port.arriving, self.reactor.getReaders())
        client.close()
        await self.until(lambda: len(self.lost) == 1)
        self.assertNotIn(self.port.arriving, self.reactor.getReaders())

    async def test_a_reactor_that_stops_ends_them(self) -> None:
        await self.connect(2)
        self.reactor.removeReader(self.port.arriving)
        self.port.arriving.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(len(self.lost), 2)

    async def test_a_crowd_may_wait_in_the_kernel(self) -> None:
        self.port.stopReading()
        crowd = []
        for _ in range(300):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(self.port.socket.getsockname())
            crowd.append(one)
        self.clients += crowd
        refused = [one for one in crowd if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
        connected = [
            one for one in crowd if one.connect_ex(self.port.socket.getsockname()) in (0, errno.EISCONN)
        ]
        self.assertEqual((len(connected), refused), (300, []))
        self.port.startReading()
        await self.until(lambda: len(self.made) == 300)

    async def test_a_turn_accepts_few(self) -> None:
        self.assertEqual(self.port.numberAccepts, transport.ACCEPTS)
        self.port.numberAccepts = 10_000
        self.assertEqual(self.port.numberAccepts, transport.ACCEPTS)

    async def test_it_accepts_fewer_while_those_that_came_keep_it_busy(self) -> None:
        crowd = await self.connect(transport.ARRIVING)
        for one in crowd[1:]:
            one.sendall(b"half a head")
        self.assertEqual(self.port.numberAccepts, transport.ACCEPTS)
        crowd[0].sendall(b"half a head")
        self.assertEqual(self.port.numberAccepts, transport.FEW_ACCEPTS)
        await self.until(lambda: len(self.got) == len(crowd))
        self.assertEqual(self.port.numberAccepts, transport.ACCEPTS)

    async def test_who_came_and_went_before_it_was_read_from_does_not_pile_up(self) -> None:
        port, most = self.port.getHost().port, 0
        for _ in range(40 * transport.ARRIVING):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(b"half a head")

        def look() -> bool:
            nonlocal most
            most = max(most, len(self.made) - len(self.lost))
            return len(self.lost) == 40 * transport.ARRIVING

        await self.until(look)
        self.assertLess(most, 4 * transport.ARRIVING)


class CollectorTests(TestCase):
    def test_the_rhythm_is_set_and_put_back(self) -> None:
        from twisted.internet.task import Clock

        before, clock = gc.get_threshold(), Clock()
        wheel = Wheel(clock)
        wheel.start()
        collector = Collector(wheel)
        collector.start()
        self.addCleanup(collector.stop)
        self.assertEqual(gc.get_threshold(), THRESHOLDS)

        class Cycle:
            pass

        seen: list[int] = []
        one = Cycle()
        one.me = one  # type: ignore[attr-defined]
        import weakref

        weakref.finalize(one, seen.append, 1)
        del one
        clock.pump([1] * 599)
        self.assertEqual(seen, [])
        clock.pump([1] * 3)
        self.assertEqual(seen, [1])
        collector.stop()
        collector.stop()
        self.assertEqual(gc.get_threshold(), before)
        wheel.stop()
