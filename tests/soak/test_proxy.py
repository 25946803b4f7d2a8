"""The proxy's faults at chosen times, and its use of several targets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from random import Random
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.soak.proxy import ChaosProxy


class Echo:
    """A server that sends back its name and what it gets, and records what it got."""

    def __init__(self, name: bytes) -> None:
        self.name, self.got = name, b""

    async def __aenter__(self) -> Echo:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                self.got += data
                writer.write(self.name + data)
        finally:
            writer.transport.abort()


class Client:
    """One connection through the proxy."""

    @classmethod
    async def to(cls, proxy: ChaosProxy) -> Client:
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        return self

    async def ask(self, data: bytes) -> bytes:
        """Send data and return the answer; empty if the connection has ended."""
        try:
            self.writer.write(data)
            async with asyncio.timeout(5):
                return await self.reader.read(100)
        except ConnectionError:
            return b""


def calm(*targets: int) -> ChaosProxy:
    proxy = ChaosProxy(list(targets), Random(1))
    proxy.calm = True
    return proxy


async def with_two(test: Callable[[Echo, Echo, ChaosProxy], Coroutine[Any, Any, None]]) -> None:
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(Echo(name)) for name in (b"1", b"2")]
        proxy = calm(one.port, other.port)
        await proxy.start()
        stack.push_async_callback(proxy.stop)
        await test(one, other, proxy)


class Outages(TestCase):
    timeout = 30

    def run_with_two(self, test: Callable[[Echo, Echo, ChaosProxy], Coroutine[Any, Any, None]]) -> Any:
        return deferToThread(lambda: asyncio.run(with_two(test)))

    def test_an_outage_resets_all_and_refuses_until_it_is_over(self) -> Any:
        async def test(one: Echo, other: Echo, proxy: ChaosProxy) -> None:
            before = await Client.to(proxy)
            self.assertEqual(await before.ask(b"a"), b"1a")
            outage = asyncio.ensure_future(proxy.outage(0.5))
            self.assertEqual(await before.reader.read(), b"")
            during = await Client.to(proxy)
            self.assertEqual(await during.ask(b"b"), b"")
            self.assertFalse(outage.done())
            await outage
            after = await Client.to(proxy)
            self.assertIn(await after.ask(b"c"), (b"1c", b"2c"))
            self.assertNotIn(b"b", one.got + other.got)

        return self.run_with_two(test)

    def test_a_silent_one_swallows_what_is_sent_and_resets_at_its_end(self) -> Any:
        async def test(one: Echo, other: Echo, proxy: ChaosProxy) -> None:
            client = await Client.to(proxy)
            self.assertEqual(await client.ask(b"a"), b"1a")
            outage = asyncio.ensure_future(proxy.outage(0.5, silent=True))
            await asyncio.sleep(0)
            self.assertEqual(await client.ask(b"b"), b"")
            self.assertEqual(one.got, b"a")
            await outage

        return self.run_with_two(test)

    def test_targets_take_turns_and_one_that_refuses_is_passed_over(self) -> Any:
        async def test(one: Echo, other: Echo, proxy: ChaosProxy) -> None:
            clients = [await Client.to(proxy) for _ in range(2)]
            self.assertEqual({await client.ask(b"a") for client in clients}, {b"1a", b"2a"})
            one.server.close()
            for _ in range(3):
                self.assertEqual(await (await Client.to(proxy)).ask(b"a"), b"2a")

        return self.run_with_two(test)
