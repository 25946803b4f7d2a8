"""The public port."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import Unavailable
from notify.http.answers import Answer
from notify.http.server import Route, Site
from notify.transport.admission import TurnedAway, Visit
from notify.transport.listener import is_websocket
from notify.wire.head import MAX_HEAD
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, frame, frames, head


class Choice(SynchronousTestCase):
    def test_the_first_bytes_tell_a_websocket_from_the_rest(self) -> None:
        for start, choice in (
            (b"", None),
            (b"GET /w", None),
            (b"GET /ws", None),
            (b"GET /ws ", True),
            (b"GET /ws?client_id=1", True),
            (b"GET /wsx", False),
            (b"GET /health", False),
            (b"POST", False),
            (b"\x16\x03\x01", False),
        ):
            self.assertIs(is_websocket(start), choice, start)

    def test_they_do_so_behind_an_authority_too(self) -> None:
        for start, choice in (
            (b"GET h", None),
            (b"GET HTTP:/", None),
            (b"GET http://", None),
            (b"GET http://a.exa", None),
            (b"GET http://a.example/w", None),
            (b"GET http://a.example/ws ", True),
            (b"GET https://a.example:443/ws?", True),
            (b"GET http://a.example/health", False),
            (b"GET http://a.example ", False),
            (b"GET http:///ws ", False),
            (b"GET http://a.example\r\n\r\n", False),
            (b"GET httpx://a/ws ", False),
            (b"GET host/ws ", False),
            (b"GET http://".ljust(MAX_HEAD, b"a"), None),
            (b"GET http://".ljust(MAX_HEAD + 1, b"a"), False),
            (b"GET http://".ljust(MAX_HEAD + 1, b"a") + b"/ws ", False),
            (b"GET http://a.example/ws ".ljust(2 * MAX_HEAD, b"a"), True),
        ):
            self.assertIs(is_websocket(start), choice, start[:40])

    def test_each_goes_to_its_own_with_all_that_was_sent(self) -> None:
        sent = head(*HANDSHAKE) + frame(b'{"type":"ping"}')
        for size in (1, 7, len(sent)):
            wire = Wire().feed(*(sent[at : at + size] for at in range(0, len(sent), size)))
            self.assertEqual((wire.status, len(frames(wire.answer))), (b"101", 1))
            self.assertTrue(wire.transport.no_delay)
            wire = Wire().feed(*(b"GET /hello"[at : at + size] for at in range(0, 10, size)))
            self.assertEqual((wire.status, wire.protocol.seen), (b"299", b"GET /hello"))


class Elsewhere(SynchronousTestCase):
    """Another process must be asked whether there is room for the address that a proxy reports."""

    def setUp(self) -> None:
        self.wire = Wire(trusted=("192.168.1.1",))
        self.asked: Deferred[None] = Deferred()
        visit = self.wire.transport.protocol._visit
        self.patch(Visit, "identify", lambda visit, address: self.asked)
        self.paused: list[bool] = []
        self.wire.transport.pauseProducing = lambda: self.paused.append(True)
        self.wire.transport.resumeProducing = lambda: self.paused.append(False)
        self.assertIsInstance(visit, Visit)
        sent = head(*HANDSHAKE, b"X-Forwarded-For: 8.8.8.8") + frame(b'{"type":"ping"}')
        self.wire.feed(sent)

    def test_it_opens_once_that_is_known_with_all_that_was_sent(self) -> None:
        self.assertEqual((self.wire.answer, self.paused), (b"", [True]))
        self.asked.callback(None)
        self.assertEqual((self.wire.status, len(frames(self.wire.answer))), (b"101", 1))
        self.assertEqual((self.paused, self.wire.admission.arriving), ([True, False], 0))

    def test_it_is_refused_where_there_is_none_or_nobody_can_be_asked(self) -> None:
        for why, status in (
            (TurnedAway("address_connections"), b"429"),
            (Unavailable("gone"), b"503"),
        ):
            self.setUp()
            self.asked.errback(why)
            self.assertEqual(self.wire.status, status)
            self.wire.transport.protocol.connectionLost()
            self.assertEqual(self.wire.admission.sockets, 0)

    def test_who_is_gone_by_then_is_gone(self) -> None:
        self.wire.transport.protocol.connectionLost()
        self.assertEqual(self.wire.admission.sockets, 0)
        self.asked.callback(None)
        self.assertEqual(self.wire.answer, b"")


class KeptConnections(SynchronousTestCase):
    """A proxy sends many clients' requests over one connection that it keeps: a handshake may follow other requests."""

    health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"

    def setUp(self) -> None:
        self.clock = Clock()
        self.wire = Wire(trusted=("192.168.1.1",), max_connections_per_address=1)
        self.wire.transport.protocol.connectionLost()
        route = Route({b"GET": lambda request: Answer(200, b"well")})
        self.wire.port.site = Site(self.clock, {b"/health": route}, None, self.wire.world.metrics)

    def begin(self, *segments: bytes) -> Wire:
        wire = self.wire.again().feed(*segments)
        self.clock.pump([0] * 8)
        return wire

    def test_it_opens_a_connection_wherever_it_is_cut(self) -> None:
        sent = 2 * self.health + head(*HANDSHAKE) + frame(b'{"type":"ping"}')
        for at in range(1, len(sent)):
            wire = self.begin(sent[:at], sent[at:])
            answers = wire.answer.split(b"HTTP/1.1 ")
            self.assertEqual([answer[:3] for answer in answers[1:]], [b"200", b"200", b"101"], at)
            self.assertEqual(len(frames(answers[-1])), 1, at)
            self.clock.advance(100)
            self.assertFalse(wire.transport.aborted or wire.transport.disconnecting, at)
            wire.protocol.connectionLost()
        self.assertEqual((self.wire.admission.sockets, self.wire.admission.arriving), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_judged_as_any_other(self) -> None:
        for lines, status in (
            ((*HANDSHAKE, b"Origin: https://b.example"), b"403"),
            (HANDSHAKE[:2], b"426"),
            ((b"GET http://a/ws?x=1 HTTP/1.1", *HANDSHAKE[1:]), b"101"),
            ((b"GET /wsx HTTP/1.1", *HANDSHAKE[1:]), b"404"),
        ):
            wire = self.begin(self.health, head(*lines))
            self.assertEqual(wire.answer.split(b"HTTP/1.1 ")[2][:3], status, lines)
            self.assertIs(wire.transport.disconnecting, status in (b"403", b"426"))
            wire.transport.protocol.connectionLost()
        self.assertEqual((self.wire.admission.sockets, self.wire.admission.arriving), (0, 0))

    def test_its_own_client_counts(self) -> None:
        lines = head(*HANDSHAKE, b"X-Forwarded-For: 8.8.8.8")
        first = self.begin(self.health, lines).transport
        second = self.begin(self.health, lines).transport
        self.assertEqual([t.value().split(b"HTTP/1.1 ")[2][:3] for t in (first, second)], [b"101", b"429"])
        for transport in (first, second):
            transport.protocol.connectionLost()
        self.assertEqual(self.wire.admission.sockets, 0)
