"""The write-through transport on real sockets."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.transport.tcp import READ, InnerPort, PacedPort, WriteThroughServer, paced, settle


class Server(Protocol):
    def __init__(self, made: Deferred[Any]) -> None:
        self.made = made
        self.lost: Deferred[Any] = Deferred()
        self.first: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if not self.first.called:
            self.first.callback(data)

    def connectionMade(self) -> None:
        self.made.callback(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class Producer:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.resumed: Deferred[None] = Deferred()

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")
        self.resumed.callback(None)

    def stopProducing(self) -> None:
        self.calls.append("stop")


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(1 << 20)
        if not part:
            break
        data += part
    return data


class WriteThroughTests(TestCase):
    timeout = 30

    async def connect(self, kind: type[PacedPort] = PacedPort) -> tuple[Server, socket.socket]:
        from twisted.internet import reactor

        made: Deferred[Server] = Deferred()
        port: Any = reactor.listenTCP(0, Factory.forProtocol(lambda: Server(made)), interface="127.0.0.1")  # type: ignore[attr-defined]
        paced(port, reactor, kind)
        self.addCleanup(port.stopListening)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", port.getHost().port))
        self.addCleanup(client.close)
        server = await made
        self.addCleanup(lambda: server.lost)
        self.addCleanup(server.transport.abortConnection)  # type: ignore[union-attr]
        return server, client

    async def test_bytes_are_on_their_way_before_write_returns(self) -> None:
        server, client = await self.connect()
        transport: Any = server.transport
        self.assertIsInstance(transport, WriteThroughServer)
        transport.write(b"hello")
        self.assertEqual(client.recv(100), b"hello")  # the reactor has had no turn in between

    async def test_a_connection_has_its_attributes_from_the_start(self) -> None:
        # CPython moves all of them to a dictionary, three times as large, for one that is new to the class.
        server, _ = await self.connect()
        transport: Any = server.transport
        before = set(vars(transport))
        transport.registerProducer(Producer(), True)
        settle(transport)
        transport.write(b"hello")
        self.assertEqual(set(vars(transport)), before)

    async def test_our_own_port_reads_in_large_pieces(self) -> None:
        server, client = await self.connect(InnerPort)
        client.sendall(b"x" * 60_000)  # before the reactor's next turn
        self.assertEqual(len(await server.first), 60_000)

    async def test_what_the_socket_does_not_take_follows_in_order(self) -> None:
        server, client = await self.connect()
        transport: Any = server.transport
        producer = Producer()
        transport.registerProducer(producer, True)
        sent = b""
        for number in range(2000):
            part = b"%d;" % number * 1000
            transport.write(part)
            sent += part
            if producer.calls and number > 20:
                break
        self.assertEqual(set(producer.calls), {"pause"})
        transport.write(b"end")
        got = await deferToThread(read, client, len(sent) + 3)
        self.assertEqual(len(got), len(sent) + 3)
        self.assertTrue(got == sent + b"end")
        await producer.resumed
        transport.write(b"straight")
        self.assertEqual(client.recv(100), b"straight")

    async def test_a_producer_is_paused_at_the_first_byte_that_waits(self) -> None:
        server, _ = await self.connect()
        transport: Any = server.transport
        producer = Producer()
        transport.registerProducer(producer, True)
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        while not producer.calls:
            transport.write(b"x" * 512)
        self.assertLessEqual(len(transport.dataBuffer) + transport._tempDataLen, 512)

    async def test_a_write_to_a_client_that_is_gone_does_not_raise(self) -> None:
        server, client = await self.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        transport: Any = server.transport
        while not transport.disconnected and not server.lost.called:
            transport.write(b"x")
            if transport._tempDataBuffer:
                break
        await server.lost

    async def test_a_client_that_sends_much_is_read_from_a_little_at_a_time(self) -> None:
        server, client = await self.connect()
        reads: list[int] = []
        done: Deferred[None] = Deferred()

        def take(data: bytes) -> None:
            reads.append(len(data))
            if sum(reads) == 10 * READ:
                done.callback(None)

        server.dataReceived = take  # type: ignore[method-assign]
        client.sendall(b"x" * 10 * READ)
        await done
        self.assertLessEqual(max(reads), READ)

    async def test_a_port_that_is_not_plain_tcp_is_left_alone(self) -> None:
        class Other:
            transport = object()

        port = Other()
        paced(port, None)
        self.assertIs(port.transport, Other.transport)
