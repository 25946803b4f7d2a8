"""The proxy spreads connections, skips targets that refuse, and breaks connections in every way."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from notify.chaos.proxy import Proxy
from tests.support.natsd import until
from tests.support.ports import free_port


class Echo(Protocol):
    """Sends its name, then what it receives."""

    name = b""

    def connectionMade(self) -> None:
        self.transport.write(self.name)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Client(Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.ended: Deferred[Any] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(None)


class Proxied(TestCase):
    timeout = 20

    def listen(self, name: bytes) -> tuple[str, int]:
        factory = Factory.forProtocol(type("Named", (Echo,), {"name": name}))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return "127.0.0.1", port.getHost().port

    def proxy(self, *targets: tuple[str, int]) -> Proxy:
        proxy = Proxy(reactor, targets)
        self.addCleanup(proxy.stop)
        return proxy

    async def client(self, proxy: Proxy) -> Client:
        client = Client()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", proxy.port), client)
        return client

    async def test_targets_take_turns_and_one_that_refuses_is_passed_over(self) -> None:
        proxy = self.proxy(self.listen(b"a"), ("127.0.0.1", free_port()), self.listen(b"b"))
        names = []
        for _ in range(4):
            client = await self.client(proxy)
            await until(lambda client=client: client.got)
            names.append(client.got)
        self.assertEqual(names, [b"a", b"b", b"a", b"b"])

    async def test_who_leaves_while_its_target_is_dialled_leaves_nothing_behind(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
            for _ in range(3):
                other = stack.enter_context(socket.socket())
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            proxy = self.proxy(full.getsockname())
            client = await self.client(proxy)
            await until(lambda: proxy.clients)
            [side] = proxy.clients
            client.transport.abortConnection()  # type: ignore[union-attr]
            await client.ended
            await until(lambda: not proxy.clients)
            self.assertEqual(side.connector.state, "disconnected")

    async def test_nobody_there_is_a_connection_that_ends(self) -> None:
        proxy = self.proxy(("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
        await (await self.client(proxy)).ended

    async def test_cut(self) -> None:
        proxy = self.proxy(self.listen(b"a"))
        client = await self.client(proxy)
        await until(lambda: client.got)
        self.assertEqual(proxy.cut(), 1)
        await client.ended

    async def test_silence_is_for_those_that_are_there(self) -> None:
        proxy = self.proxy(self.listen(b"a"))
        client = await self.client(proxy)
        await until(lambda: client.got)
        proxy.silence()
        client.transport.write(b"hello")
        later = await self.client(proxy)
        later.transport.write(b"hello")
        await until(lambda: later.got == b"ahello")
        self.assertEqual((client.got, client.ended.called), (b"a", False))

    async def test_what_is_stalled_comes_when_it_is_released(self) -> None:
        target = self.listen(b"a")
        proxy = self.proxy(target)
        client = await self.client(proxy)
        await until(lambda: client.got)
        proxy.stall()
        client.transport.write(b"hello")
        other = await self.client(self.proxy(target))
        await until(lambda: other.got)
        self.assertEqual(client.got, b"a")
        proxy.stall(False)
        await until(lambda: client.got == b"ahello")
