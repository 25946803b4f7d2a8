"""A page that loads, against a real server: whatever is published and whenever, it shows what its backend has."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from twisted.trial.unittest import TestCase

from notify.client import AsyncioClient, AsyncioPublisher, Position, Settings
from tests.support.fake_server import from_asyncio
from tests.support.proxy import Proxy
from tests.support.running import API_KEY, LocalServer, token

#: the messages that are published, and how many the server keeps: a client that is away soon misses more
MESSAGES, KEPT = 600, 20


class Loading(TestCase):
    timeout = 60

    async def test_a_page_shows_what_its_backend_has_over_cuts_losses_and_failing_loads(self) -> None:
        kept = {"BROKER__MEMORY__HISTORY_SIZE": str(KEPT), "LIMITS__REPLAY": str(KEPT)}
        server = await LocalServer(**kept).start(self)
        proxy = Proxy(server.service.public.port.getHost().port)
        self.addCleanup(proxy.stop)
        await from_asyncio(self.live(server, proxy))

    async def live(self, server: LocalServer, proxy: Proxy) -> None:
        chance = random.Random(7)
        stored: dict[Any, str] = {}
        shown: dict[Any, str] = {}
        loads: list[Position] = []
        failures = 0

        async def load(position: Position) -> None:
            loads.append(position)
            await asyncio.sleep(chance.random() * 0.05)
            rows = dict(stored)  # the backend has read its database; its answer is on the way
            await asyncio.sleep(chance.random() * 0.05)
            if len(loads) % 3 == 1:
                raise ConnectionError("the backend is away")
            shown.clear()
            shown.update(rows)

        async def read(chat: Any) -> None:
            nonlocal failures
            while True:
                try:
                    async for message in chat:
                        shown[message.message_id] = message.content
                    return
                except ConnectionError:
                    failures += 1

        async def publish(publisher: AsyncioPublisher) -> None:
            for number in range(MESSAGES):
                stored[number] = f"message {number}"
                await publisher.chat(1, 7, 3, stored[number], message_id=number)
                if number % 100 == 50:
                    proxy.cut()
                if number % 10 == 0:
                    await asyncio.sleep(chance.random() * 0.02)

        settings = Settings(backoff_floor=0.01, backoff_base=0.2, backoff_cap=0.2)
        async with (
            AsyncioPublisher(server.api, API_KEY) as publisher,
            AsyncioClient(f"ws://127.0.0.1:{proxy.port}/ws", token(5), settings=settings) as client,
        ):
            reading = asyncio.ensure_future(read(client.chat(7, load=load)))
            await publish(publisher)
            async with asyncio.timeout(20):
                while shown != stored:
                    await asyncio.sleep(0.01)
        await reading
        self.assertGreater(len(loads) - failures, 1)  # at the start, and again after a loss
        self.assertGreater(failures, 0)
