"""The fast path for messages and nats-py's own, longer path: both deliver the same messages."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import ssl
import unittest
from collections.abc import Callable, Coroutine
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from cryptography.x509 import IPAddress
from nats.aio.client import Client
from twisted.internet.defer import succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.nats import headers
from notify.nats.bridge import as_deferred
from notify.nats.client import RawClient, _Incoming, missing_permission
from tests.support.certificates import Authority
from tests.support.natsd import NatsServer, until


class LongClient(RawClient):
    """Takes nats-py's long path, as if nats-py no longer called the method that the fast path overrides."""

    _process_msg = Client._process_msg


async def _kept(heard: list[bytes], message: Any) -> None:
    heard.append(message.data)


class Writing(SynchronousTestCase):
    """A client writes directly only where nothing waits, and its transport keeps up."""

    def client(self) -> tuple[RawClient, Any]:
        class Transport:
            wrote: ClassVar[list[bytes]] = []
            closing, held = False, 0

            def is_closing(self) -> bool:
                return self.closing

            def get_write_buffer_size(self) -> int:
                return self.held

            def write(self, data: bytes) -> None:
                self.wrote.append(data)

        class Connected(RawClient):
            is_connected = True  # type: ignore[assignment]

        client, transport = Connected(), Transport()
        transport.wrote.clear()
        client._transport = SimpleNamespace(_io_writer=SimpleNamespace(transport=transport))  # type: ignore[assignment]
        return client, transport

    def test_at_once(self) -> None:
        client, transport = self.client()
        self.assertTrue(client.write(b"a") and client.write(b"b"))
        self.assertEqual(transport.wrote, [b"a", b"b"])

    def test_not_before_what_waits(self) -> None:
        client, transport = self.client()
        client._pending.append(b"first")
        self.assertFalse(client.write(b"a"))
        self.assertEqual(transport.wrote, [])

    def test_not_to_a_transport_that_is_behind_or_closing(self) -> None:
        client, transport = self.client()
        transport.held = 2**16
        self.assertFalse(client.write(b"a"))
        transport.held, transport.closing = 0, True
        self.assertFalse(client.write(b"a"))
        self.assertEqual(transport.wrote, [])

    def test_not_without_a_connection_or_over_another_transport_of_nats_py(self) -> None:
        self.assertFalse(RawClient().write(b"a"))
        client, _ = self.client()
        client._transport = SimpleNamespace()  # type: ignore[assignment]
        self.assertFalse(client.write(b"a"))
        client.read_directly(lambda _: None)


class Reading(SynchronousTestCase):
    def test_a_missing_permission_is_reported_before_what_was_sent_later(self) -> None:
        heard: list[Any] = []

        class Theirs:
            def data_received(self, data: bytes) -> None:
                heard.append(data)

        def take(number: int, *message: bytes) -> bool:
            heard.append(number)
            return True

        incoming = _Incoming(Theirs(), take, lambda error: heard.append(missing_permission(error)))
        incoming.data_received(
            b"MSG a 1 0\r\n\r\nPING\r\n-ERR 'Permissions Violation for Publish to \"x.Y\"'\r\n"
            b"MSG a 2 0\r\n\r\n-ERR 'Stale Connection'\r\n"
        )
        self.assertEqual(
            heard,
            [1, b"PING\r\n", 'permissions violation for publish to "x.Y"', 2, b"-ERR 'Stale Connection'\r\n"],
        )


class Ways(TestCase):
    timeout = 30

    async def came(
        self, kind: type[RawClient], server: NatsServer, directly: bool = False
    ) -> list[tuple[Any, ...]]:
        heard: list[tuple[bytes, str, bytes, bytes]] = []
        client = kind()
        await as_deferred(client.connect(server.url, allow_reconnect=False))
        self.addCleanup(lambda: as_deferred(client.close()) if client.is_connected else succeed(None))
        if directly:
            client.read_directly(lambda _: None)
        theirs: list[bytes] = []
        await as_deferred(client.subscribe("theirs", cb=partial(_kept, theirs)))
        await as_deferred(client.subscribe_raw("a.>", lambda *message: heard.append(message)))
        await as_deferred(client.publish("a.plain", b"one"))
        fields = {"Nats-Sequence": "7", "Nats-Last-Sequence": "5", "traceparent": "00-" + "a" * 52}
        await as_deferred(client.publish("a.fields", b"two", "reply.to", fields))
        await as_deferred(client.publish("nobody.listens", b"", "a.status"))
        await as_deferred(client.publish("theirs", b"for nats-py"))
        await as_deferred(client.flush())
        await until(lambda: len(heard) == 3 and theirs == [b"for nats-py"], 10)
        return [
            (
                subject,
                reply,
                data,
                headers.number(block, headers.SEQUENCE),
                headers.number(block, headers.LAST_SEQUENCE),
                headers.trace(block),
                headers.status(block),
            )
            for subject, reply, data, block in heard
        ]

    async def test_all_give_the_same(self) -> None:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        short = await self.came(RawClient, server)
        self.assertEqual(await self.came(LongClient, server), short)
        self.assertEqual(await self.came(LongClient, server, directly=True), short)
        self.assertEqual(short[0], (b"a.plain", "", b"one", 0, 0, "", 0))
        self.assertEqual(short[1], (b"a.fields", "reply.to", b"two", 7, 5, "00-" + "a" * 52, 0))
        self.assertEqual((short[2][0], short[2][6]), (b"a.status", 503))


class Talks(asyncio.Protocol):
    """The part of a NATS server that a client needs to log in."""

    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b'INFO {"server_id":"x","version":"2.12.8","headers":true,"max_payload":1048576}\r\n')

    def data_received(self, data: bytes) -> None:
        if b"PING" in data:
            self.transport.write(b"PONG\r\n")


async def cut(end: Callable[[RawClient, Talks], Coroutine[Any, Any, None]]) -> bool:
    """Whether a client that has something to send is closed after ``end`` has ended its connection."""
    peers: list[Talks] = []

    def talks() -> Talks:
        peers.append(Talks())
        return peers[-1]

    async def silent(_: Exception) -> None:
        pass

    server = await asyncio.get_running_loop().create_server(talks, "127.0.0.1", 0)
    client = RawClient()
    port = server.sockets[0].getsockname()[1]
    await client.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, error_cb=silent)
    await client.flush()
    await end(client, peers[0])
    server.close()
    return client.is_closed


async def by_us(client: RawClient, peer: Talks) -> None:
    client.sever()
    await client.publish("a", b"unsent")
    await client.end()


async def by_the_server(client: RawClient, peer: Talks) -> None:
    peer.transport.abort()
    async with asyncio.timeout(10):
        while not client.is_closed:
            await client.publish("a", b"unsent")
            await asyncio.sleep(0)
    await client.end()


class Cut(TestCase):
    """What nats-py has not sent when the connection ends is dropped silently, on either event loop."""

    timeout = 30

    async def each(self, module: str) -> None:
        def on_its_loop(end: Callable[[RawClient, Talks], Coroutine[Any, Any, None]]) -> bool:
            loop = importlib.import_module(module).new_event_loop()
            try:
                closed: bool = loop.run_until_complete(cut(end))
            finally:
                loop.close()
            return closed

        for end in (by_us, by_the_server):
            with self.assertNoLogs("nats.aio.client"):
                self.assertTrue(await deferToThread(on_its_loop, end))

    async def test_on_asyncios(self) -> None:
        await self.each("asyncio")

    @unittest.skipUnless(importlib.util.find_spec("uvloop"), "uvloop is not installed")
    async def test_on_uvloop(self) -> None:
        await self.each("uvloop")


async def late(url: str, context: ssl.SSLContext) -> bool:
    """Whether a client whose connection ended during the login says so, and nothing else happens."""
    client = RawClient()
    await client.connect(url, allow_reconnect=False, tls=context)
    await client.end()
    client._transport.close()  # as nats-py does when it notices the end as well
    client.read_directly(lambda _: None)
    return not client.write(b"PING\r\n")


class Late(TestCase):
    """A connection that ends just after the login."""

    timeout = 30

    async def with_tls(self, module: str) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder)
        key, certificate = authority.issue(IPAddress(ip_address("127.0.0.1")))
        files = f'tls {{ cert_file: "{certificate.absolute()}", key_file: "{key.absolute()}" }}'
        server = NatsServer(extra=files).start()
        self.addCleanup(server.remove)
        await server.up()
        context = ssl.create_default_context(cafile=authority.certificate)

        def on_its_loop() -> bool:
            loop = importlib.import_module(module).new_event_loop()
            try:
                return bool(loop.run_until_complete(late(server.url, context)))
            finally:
                loop.close()

        self.assertTrue(await deferToThread(on_its_loop))

    async def test_on_asyncios_loop(self) -> None:
        await self.with_tls("asyncio")

    @unittest.skipUnless(importlib.util.find_spec("uvloop"), "uvloop is not installed")
    async def test_on_uvloop(self) -> None:
        await self.with_tls("uvloop")


class Ends(TestCase):
    async def test_whatever_closing_raises_who_connects_anew_goes_on(self) -> None:
        class Odd(RawClient):
            async def close(self) -> None:
                raise ValueError("not as it was")

        await as_deferred(Odd().end())
