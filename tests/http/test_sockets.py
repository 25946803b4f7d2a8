"""The internal listener on real sockets, with clients that misbehave."""

import json
import socket
import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.http.answers import Sink, Stream
from notify.http.server import Route, Site
from notify.testing import chat_payload, make_context
from notify.topics import chat
from tests.support.http import AUTH, Node, parse_responses, request_bytes

JSON = {**AUTH, "Content-Type": "application/json"}
TOPIC = chat(1, 10)
MIB = 2**20


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes; a reset must not destroy an answer."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


class Base(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.node = Node(reactor=reactor)
        self.node.up()
        port = reactor.listenTCP(0, self.node.site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.address = ("127.0.0.1", port.getHost().port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    async def in_thread(self, talk: Any) -> Any:
        def run() -> Any:
            with self.connect() as client:
                return talk(client)

        return await deferToThread(run)


class RefusedWhileSendingTest(Base):
    async def test_a_client_that_sends_its_whole_body_first_can_read_why_it_was_refused(self) -> None:
        for headers, frame in (
            ({"Content-Length": str(5 * MIB)}, lambda data: data),
            ({"Transfer-Encoding": "chunked"}, lambda data: b"%x\r\n%s\r\n" % (len(data), data)),
        ):

            def talk(client: socket.socket, headers: Any = headers, frame: Any = frame) -> bytes:
                client.sendall(request_bytes("POST", "/v1/publish", None, {**JSON, **headers}))
                for _ in range(5):
                    client.sendall(frame(b"x" * MIB))
                return read_all(client)

            (response,) = parse_responses(await self.in_thread(talk))
            self.assertEqual((response.status, response.code), (413, "too_large"))

    async def test_a_client_that_never_stops_sending_is_cut_off(self) -> None:
        def talk(client: socket.socket) -> tuple[int, float]:
            client.sendall(request_bytes("POST", "/v1/publish", None, {**JSON, "Content-Length": str(2**40)}))
            sent, begun = 0, time.monotonic()
            try:
                while time.monotonic() < begun + 15:
                    sent += client.send(b"x" * 65536)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return sent, time.monotonic() - begun

        sent, seconds = await self.in_thread(talk)
        self.assertLess(seconds, 10)
        self.assertLess(sent, 64 * MIB)  # what the server discards, and what the kernel buffers

    async def test_others_are_served_meanwhile(self) -> None:
        flood = [self.connect() for _ in range(50)]
        for client in flood:
            client.sendall(b"POST /v1/publish HTTP/1.1\r\nX-Slow: ")
            self.addCleanup(client.close)
        body = json.dumps({"subject": TOPIC.subject, "payload": json.loads(chat_payload(TOPIC))}).encode()

        def talk(client: socket.socket) -> bytes:
            client.sendall(request_bytes("POST", "/v1/publish", body, {**JSON, "Connection": "close"}))
            return read_all(client)

        (response,) = parse_responses(await self.in_thread(talk))
        self.assertEqual(response.status, 200)

    async def test_a_half_closed_client_is_forgotten(self) -> None:
        def talk(client: socket.socket) -> bytes:
            client.sendall(request_bytes("GET", "/health/live")[:30])
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

        self.assertEqual(await self.in_thread(talk), b"")

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        def talk(client: socket.socket) -> bytes:
            client.sendall(
                b"".join(
                    request_bytes("GET", "/health/live", None, {"X-Request-Id": str(n)}) for n in range(500)
                )
                + request_bytes("GET", "/none", None, {"Connection": "close"})
            )
            return read_all(client)

        responses = parse_responses(await self.in_thread(talk))
        self.assertEqual([r["X-Request-Id"] for r in responses[:-1]], [str(n) for n in range(500)])
        self.assertEqual(responses[-1].status, 404)


class Counting:
    """Streams numbered blocks as fast as it may, one per turn of the reactor.

    A pause and its end may both come before the next turn, so at most one call is scheduled.
    """

    SIZE, BLOCKS = 64 * 1024, 1000

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.next = 0
        self.turn: Any = None
        self.paused: Deferred[int] = Deferred()

    def begin(self, sink: Sink) -> "Counting":
        self.sink = sink
        self.resumeProducing()
        return self

    def go(self) -> None:
        self.resumeProducing()  # first, because the sink may pause from within its write
        self.sink.write(b"%d " % self.next * (self.SIZE // 8))
        self.next += 1
        if self.next == self.BLOCKS:
            self.stopProducing()
            self.sink.finish()

    def pauseProducing(self) -> None:
        self.stopProducing()
        if not self.paused.called:
            self.paused.callback(self.next)

    def resumeProducing(self) -> None:
        self.stopProducing()
        self.turn = self.reactor.callLater(0, self.go)

    def stopProducing(self) -> None:
        if self.turn is not None and self.turn.active():
            self.turn.cancel()


class StreamTest(TestCase):
    timeout = 60

    async def test_a_stream_waits_for_a_client_that_reads_late_and_comes_whole(self) -> None:
        from twisted.internet import reactor

        counting = Counting(reactor)
        routes = {b"/stream": Route({b"GET": lambda request: Stream(counting.begin)})}
        site = Site(reactor, routes, None, make_context(reactor).metrics)
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        with socket.create_connection(("127.0.0.1", port.getHost().port), timeout=20) as client:
            client.sendall(request_bytes("GET", "/stream", None, {"Connection": "close"}))
            written = await counting.paused
            self.assertLess(written, counting.BLOCKS)
            data = await deferToThread(read_all, client)
        head, _, _ = data.partition(b"\r\n\r\n")
        self.assertIn(b"Transfer-Encoding: chunked", head)
        body, at = bytearray(), len(head) + 4
        while at < len(data):
            end = data.index(b"\r\n", at)
            size = int(data[at:end], 16)
            body += data[end + 2 : end + 2 + size]
            at = end + size + 4
        want = b"".join(b"%d " % n * (counting.SIZE // 8) for n in range(counting.BLOCKS))
        self.assertEqual((len(body), body == want), (len(want), True))
