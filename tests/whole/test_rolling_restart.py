"""Three nodes behind HAProxy, restarted one after another under load: no client misses a message or gets one twice."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import AsyncioClient
from notify.client.publisher import Publisher, PublishFailed
from notify.core.shed import STEP
from tests.support.haproxy import HAProxy
from tests.support.natsd import NatsServer
from tests.support.process import KEY, Server, token
from tests.support.programs import program

NODES, CLIENTS, CHATS = 3, 60, 12
#: seconds between two messages in a chat
INTERVAL = 0.1
#: seconds that a client may be without messages: one interval, its reconnect slot, and a new connection on a busy
#: machine
PATIENCE = INTERVAL + STEP + 5.0

CONFIG = """[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["{nats}"]
[registry]
plugin = "jetstream_kv"
[drain]
delay = "3s"
duration = "2s"
"""


class Load:
    """Publishes to every chat all the time, through nodes that are up, and records what each client gets."""

    def __init__(self, nodes: list[Server], url: str) -> None:
        self.nodes = nodes
        self.url = url
        self.sent: dict[int, list[str]] = defaultdict(list)
        self.got: dict[int, list[str]] = defaultdict(list)
        self.gaps: dict[int, float] = defaultdict(float)
        self.lost: list[Any] = []
        self.reconnects = 0
        self.repeated = 0
        self.over = threading.Event()
        self.ready = threading.Event()

    def publish(self) -> None:
        """Publish a message to each chat per interval; repeat each with the same key until a node accepts it."""
        publishers = itertools.cycle(
            [Publisher(f"http://127.0.0.1:{node.internal}", KEY, tries=1) for node in self.nodes]
        )
        publisher = next(publishers)
        number = 0
        while not self.over.wait(INTERVAL):
            number += 1
            for chat_id in range(1, CHATS + 1):
                payload = {
                    "message_id": number, "chat_id": chat_id, "workspace_id": 1, "sender_id": 1,
                    "content": str(number), "timestamp": int(time.time()),
                }  # fmt: skip
                key = uuid.uuid4().hex
                while True:
                    try:
                        publisher.publish(f"workspace.1.chat.{chat_id}.messages", payload, key=key)
                        break
                    except PublishFailed:
                        self.repeated += 1
                        publisher = next(publishers)
                self.sent[chat_id].append(str(number))

    async def follow(self, number: int, here: asyncio.Semaphore) -> None:
        """One client in one chat, until it has received everything that was published."""
        chat_id = number % CHATS + 1
        states: list[str] = []
        client = AsyncioClient(
            f"{self.url}?client_id={number}",
            token(number + 1),
            on_state=lambda state: states.append(state.name),
        )
        async with client:
            chat = client.chat(chat_id, on_lost=self.lost.append)
            await chat.ready()
            here.release()
            at: float | None = None
            while not (self.over.is_set() and len(self.got[number]) >= len(self.sent[chat_id])):
                try:
                    message = await asyncio.wait_for(chat.__anext__(), 0.5)
                except TimeoutError:
                    continue
                now = time.monotonic()
                if at is not None:
                    self.gaps[number] = max(self.gaps[number], now - at)
                at = now
                self.got[number].append(message.content)
        self.reconnects += states.count("connected") - 1

    async def clients(self) -> None:
        here = asyncio.Semaphore(0)
        following = [asyncio.ensure_future(self.follow(number, here)) for number in range(CLIENTS)]
        for _ in range(CLIENTS):
            await here.acquire()
        self.ready.set()
        await asyncio.wait_for(asyncio.gather(*following), 100)


class RollingRestart(TestCase):
    timeout = 180

    async def setUp(self) -> None:
        program("haproxy")
        self.nats = NatsServer().start()
        self.addCleanup(self.nats.remove)
        await self.nats.up()
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.nodes = [Server(CONFIG.format(nats=self.nats.url)) for _ in range(NODES)]
        for node in self.nodes:
            await deferToThread(self.stack.enter_context, node)
        self.haproxy = HAProxy([node.public for node in self.nodes])
        self.addCleanup(self.haproxy.remove)
        await self.haproxy.start()

    def test_under_load_nothing_is_lost_or_doubled_and_nobody_waits_longer_than_its_slot(
        self,
    ) -> Deferred[None]:
        return deferToThread(self.restart_all)

    def restart_all(self) -> None:
        load = Load(self.nodes, f"ws://127.0.0.1:{self.haproxy.port}/ws")
        failed: list[BaseException] = []

        def guarded(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)
                load.ready.set()

        following = threading.Thread(target=guarded, args=(lambda: asyncio.run(load.clients()),))
        publishing = threading.Thread(target=guarded, args=(load.publish,))
        following.start()
        self.assertTrue(load.ready.wait(60))
        self.assertEqual(failed, [])
        publishing.start()
        try:
            for node in self.nodes:
                node.restart()
        finally:
            load.over.set()
            publishing.join(30)
            following.join(60)
        self.assertEqual(failed, [])
        wanted = {number: load.sent[number % CHATS + 1] for number in range(CLIENTS)}
        lost = sum(len(set(wanted[n]) - set(load.got[n])) for n in wanted)
        doubled = sum(len(load.got[n]) - len(set(load.got[n])) for n in wanted)
        longest = max(load.gaps.values())
        print(
            f"\nrolling restart of {NODES} nodes, {CLIENTS} clients, {sum(map(len, load.sent.values()))} messages, "
            f"{sum(map(len, load.got.values()))} deliveries, {load.reconnects} reconnects, {load.repeated} publishes "
            f"repeated: lost {lost}, doubled {doubled}, longest gap {longest:.2f} s of which {INTERVAL} s is the interval"
        )
        self.assertEqual((lost, doubled, load.lost), (0, 0, []))
        for number, contents in wanted.items():
            self.assertEqual(load.got[number], contents)
        # Each client has lost its connection at least once.
        self.assertGreaterEqual(load.reconnects, CLIENTS)
        self.assertLess(longest, PATIENCE)
