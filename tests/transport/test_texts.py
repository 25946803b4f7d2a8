"""WebSockets of the internal port: what their talker is told, and what it can make them do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from notify.core.timers import Wheel
from notify.transport.texts import TextFactory

HEAD = (
    b"GET /v1/stream HTTP/1.1\r\nHost: notify\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)


class Talker:
    """Records what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.socket: Any = None

    def opened(self, socket: Any) -> None:
        self.socket = socket

    def text(self, payload: bytes) -> None:
        self.told.append(payload)

    def __getattr__(self, name: str) -> Any:
        return lambda: self.told.append(name)


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A masked frame of fewer than 126 bytes; the mask is all zeros."""
    return bytes((first, 0x80 | len(payload))) + bytes(4) + payload


class Texts(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        wheel = Wheel(self.clock)
        wheel.start()
        self.addCleanup(wheel.stop)
        self.factory = TextFactory(wheel, self.clock, 100)
        self.talker, self.transport = Talker(), StringTransport()
        self.transport.abortConnection = self.transport.loseConnection  # type: ignore[method-assign]
        self.protocol = self.factory.make(self.talker)
        self.protocol.makeConnection(self.transport)

    def feed(self, *frames: bytes) -> list[Any]:
        self.protocol.dataReceived(b"".join(frames))
        told, self.talker.told = self.talker.told, []
        return told

    def sent(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def test_a_handshake_is_answered_and_what_is_none_by_its_status(self) -> None:
        status, answer = self.factory.answer(HEAD, "/v1/stream")
        self.assertEqual(status, 101)
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", answer)
        for wrong, refused in (
            (HEAD.replace(b"/v1/stream", b"/ws"), 404),
            (HEAD.replace(b"GET", b"POST"), 405),
            (HEAD.replace(b"Upgrade: websocket\r\n", b""), 426),
            (HEAD.replace(b": 13", b": 8"), 426),
            (HEAD + b"\r\nOrigin: https://a.example", 403),
            (HEAD + b"\r\nOrigin:", 400),
            (HEAD + b"\r\nContent-Length: 5", 400),
            (HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
        ):
            self.assertEqual(self.factory.answer(wrong, "/v1/stream"), (HTTPStatus(refused), b""))

    def test_messages_come_whole_however_they_are_cut(self) -> None:
        self.assertEqual(self.feed(frame(b"a"), frame(b"b")), [b"a", b"b", "read"])
        self.assertEqual(self.feed(frame(b"long")[:3]), ["read"])
        self.assertEqual(self.feed(frame(b"long")[3:]), [b"long", "read"])
        self.assertEqual(self.feed(frame(b"in ", 0x01), frame(b"pieces", 0x80)), [b"in pieces", "read"])
        self.assertEqual(self.feed(frame(b"x", 0x82)), ["other", "read"])

    def test_messages_and_pings_are_sent(self) -> None:
        self.talker.socket.send([b"one", b"two"])
        self.talker.socket.ask()
        self.assertEqual(self.sent(), b"\x81\x03one\x81\x03two\x89\x00")
        self.feed(frame(b"you?", 0x89))
        self.assertEqual(self.sent(), b"\x8a\x04you?")

    def test_the_talker_hears_what_the_client_takes_and_says_what_is_read(self) -> None:
        self.transport.producer.pauseProducing()
        self.transport.producer.resumeProducing()
        self.assertEqual(self.talker.told, ["blocked", "unblocked"])
        for silent in (True, True, False):
            self.talker.socket.silence(silent)
            self.assertEqual(self.transport.producerState, "paused" if silent else "producing")

    def test_what_breaks_the_protocol_ends_it_behind_what_came_before(self) -> None:
        for wrong, code in (
            (b"\x81\x01x", 1002),
            (frame(b"x", 0xC1), 1002),
            (frame(b"\xff"), 1007),
            (b"\x81\xfe\x00\x80" + bytes(4) + bytes(128), 1009),
        ):
            self.setUp()
            self.assertEqual(self.feed(frame(b"good"), wrong, frame(b"late"))[:2], [b"good", "closing"])
            self.assertIn(code.to_bytes(2, "big"), self.sent())

    def test_either_side_closes(self) -> None:
        self.talker.socket.end(1012, "leaving")
        self.assertEqual(self.talker.told, ["closing"])
        self.assertEqual(self.sent(), b"\x88\x09\x03\xf4leaving")
        self.feed(frame(b"late"), frame(b"\x03\xf4", 0x88))
        self.assertTrue(self.transport.disconnecting)
        self.protocol.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.talker.told, ["closed"])
        self.setUp()
        self.feed(frame(b"\x03\xe8", 0x88))
        self.assertEqual(self.sent(), b"\x88\x02\x03\xe8")

    def test_who_does_not_answer_a_close_is_cut_off(self) -> None:
        self.talker.socket.end(1012, "leaving")
        self.clock.pump([0.25] * 8)
        self.assertTrue(self.transport.disconnecting)
