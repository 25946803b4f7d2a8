"""Three nodes behind a real balancer: a share of one node's clients moves to the others, and none misses a message."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.haproxy import HAProxy
from tests.support.natsd import NatsServer
from tests.support.nginx import Nginx
from tests.support.process import Server, wait_for
from tests.support.programs import program
from tests.whole.test_rolling_restart import CHATS, CLIENTS, CONFIG, Load

NODES = ("node-a", "node-b", "node-c")


class Shed:
    """What must hold behind each proxy."""

    timeout = 180

    async def setUp(self: Any) -> None:
        program(self.proxy.__name__.lower())
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.nodes = []
        for name in NODES:
            node = Server(CONFIG.format(nats=nats.url) + f'[server]\nnode = "{name}"\n')
            await deferToThread(self.stack.enter_context, node)
            self.nodes.append(node)
        self.balancer = self.proxy([node.public for node in self.nodes])
        self.addCleanup(self.balancer.remove)
        await self.balancer.start()

    def test_a_share_moves_to_the_others_and_nobody_misses_a_message(self: Any) -> Deferred[None]:
        return deferToThread(self.shed)

    def here(self: Any) -> dict[str, int]:
        """The number of clients on each node."""
        _, found = self.nodes[1].http("GET", "/v1/nodes")
        self.assertEqual(found["reached"]["answered"], len(NODES))
        return {node["node"]: node["connections"] for node in found["nodes"]}

    def sent(self: Any) -> int:
        """The number of clients that node-a has sent away."""
        found = re.search(
            r'(?m)^notify_closes_total{code="1012"} (\d+)', self.nodes[0].http("GET", "/metrics")[1]
        )
        return int(found[1]) if found is not None else 0

    def shed(self: Any) -> None:
        for node in self.nodes:
            wait_for("it knows the others", lambda node=node: node.metric("notify_nodes") == len(NODES))
        load = Load(self.nodes, f"ws://127.0.0.1:{self.balancer.port}/ws")
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
        publishing.start()
        try:
            before = self.here()
            self.assertEqual(sum(before.values()), CLIENTS, before)
            status, told = self.nodes[1].http("POST", "/v1/shed", {"node": "node-a", "share": 0.8})
            self.assertEqual((status, told["clients"]), (202, before["node-a"] * 4 // 5))
            wait_for(
                "they are sent away, and have come back",
                lambda: self.sent() == told["clients"] and sum(self.here().values()) == CLIENTS,
            )
            after = self.here()
        finally:
            load.over.set()
            publishing.join(30)
            following.join(60)
        self.assertEqual(failed, [])
        print(f"\nshed 0.8 of node-a's, {told}: {before} -> {after}")
        self.assertLess(after["node-a"], before["node-a"])
        for name in ("node-b", "node-c"):
            self.assertGreaterEqual(after[name], before[name])
        # No other client was sent away.
        self.assertEqual(load.reconnects, told["clients"])
        self.assertEqual(load.lost, [])
        for number in range(CLIENTS):
            self.assertEqual(load.got[number], load.sent[number % CHATS + 1])
        self.assertNotIn(b"client_id", self.balancer.log())


class BehindHAProxy(Shed, TestCase):
    proxy = HAProxy


class BehindNginx(Shed, TestCase):
    proxy = Nginx
