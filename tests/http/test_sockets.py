"""The internal listener on real sockets, against clients that do not behave."""

import json
import socket
import time
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.testing import chat_payload
from notify.topics import chat
from tests.support.http import AUTH, Node, parse_responses, request_bytes

JSON = {**AUTH, "Content-Type": "application/json"}
TOPIC = chat(1, 10)
MIB = 2**20


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes; a reset must not take an answer away."""
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


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
        self.assertLess(sent, 64 * MIB)  # what is thrown away, and what the kernel holds

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
