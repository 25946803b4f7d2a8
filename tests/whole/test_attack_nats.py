"""Connections to NATS that end at every step of their beginning, and a node that is killed, while messages are published.

After the former broker, presence and control are back by themselves. Every message that was accepted is delivered, once and in order, and none
that was refused.
"""

from __future__ import annotations

import importlib.util
import unittest
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from ipaddress import ip_address
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from cryptography.x509 import IPAddress
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory, ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase

from tests.support.certificates import Authority
from tests.support.natsd import NatsServer
from tests.support.process import Server, wait_for

#: atomic lists: how many at once, messages in each, after how many the node is killed, and the number of the last
PUBLISHERS, SIZE, KILLED_AFTER, END = 6, 100, 10, 10**6
#: a broker, a registry and a control, each with a connection
CONNECTIONS = 3
#: the last step after which a connection ends; by then it is in use
STEPS = 6
SETTINGS = """
[server]
event_loop = "{}"
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["tls://127.0.0.1:{}"]
tls_ca = "{}"
[registry]
plugin = "jetstream_kv"
[control]
plugin = "nats"
"""


class _FromServer(ProxyClient):
    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.peer.left -= 1
        if not self.peer.left:
            self.peer.transport.loseConnection()


class _Dialling(ProxyClientFactory):
    protocol = _FromServer
    noisy = False


class _FromClient(ProxyServer):
    clientProtocolFactory = _Dialling

    def connectionMade(self) -> None:
        steps: list[int] = self.factory.steps
        #: how often the server may send something; 0: as often as it likes
        self.left = steps.pop(0) if steps else 0
        self.factory.open.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Any) -> None:
        self.factory.open.discard(self)
        super().connectionLost(reason)


class Ending(ProxyFactory):
    """A proxy that ends connections: the first of ``steps`` is used up by the next connection."""

    protocol = _FromClient
    noisy = False

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.steps: list[int] = []
        self.open: set[_FromClient] = set()

    def begin(self) -> None:
        """End the present connections, and those that follow ever later."""
        self.steps = [step for step in range(1, STEPS + 1) for _ in range(CONNECTIONS)]
        for one in list(self.open):
            one.transport.loseConnection()


class Endings(TestCase):
    timeout = 60

    async def attack(self, event_loop: str) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        authority = Authority(folder)
        key, certificate = authority.issue(IPAddress(ip_address("127.0.0.1")))
        nats = NatsServer(extra=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}').start()
        self.addCleanup(nats.remove)
        await nats.up()
        self.proxy = Ending(nats.port)
        port: Any = reactor.listenTCP(0, self.proxy, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        settings = SETTINGS.format(event_loop, port.getHost().port, authority.certificate)
        await deferToThread(self.publish, settings)

    def publish(self, settings: str) -> None:
        with Server(settings) as server, server.client(1, (1,)) as client:
            outcomes: dict[int, int] = {}
            reactor.callFromThread(self.proxy.begin)
            wait_for("connections end", lambda: self.proxy.steps)
            while self.proxy.steps or not self.healthy(server):
                number = len(outcomes) + 1
                outcomes[number] = server.publish(1, "x", number)[0]
            number = len(outcomes) + 1
            outcomes[number] = server.publish(1, "x", number)[0]
            self.assertEqual(outcomes[number], 200)
            self.assertLessEqual(set(outcomes.values()), {200, 503, 504})
            came: list[tuple[int, int]] = []
            while not came or came[-1][1] != number:
                frame = client.receive()
                if frame["type"] == "chat_message":
                    came.append((frame["seq"], frame["message_id"]))
            self.assertEqual([seq for seq, _ in came], list(range(1, len(came) + 1)))
            numbers = [number for _, number in came]
            self.assertEqual(numbers, sorted(set(numbers)))
            accepted = {number for number, status in outcomes.items() if status == 200}
            refused = {number for number, status in outcomes.items() if status == 503}
            self.assertEqual((accepted - set(numbers), refused & set(numbers)), (set(), set()))
            self.assertNotIn("Traceback", server.log())

    def healthy(self, server: Server) -> bool:
        """Whether the broker, presence and control work."""
        _, nodes = server.http("GET", "/v1/nodes")
        presence, _ = server.http("GET", "/v1/presence?chat_id=1&workspace_id=1")
        return server.ready() and presence == 200 and "NATS is away" not in str(nodes)

    async def test_on_asyncios_loop(self) -> None:
        await self.attack("asyncio")

    @unittest.skipUnless(importlib.util.find_spec("uvloop"), "uvloop is not installed")
    async def test_on_uvloop(self) -> None:
        await self.attack("uvloop")


LISTS = """
[server]
node = "{}"
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["{}"]
allow_atomic = true
[registry]
plugin = "jetstream_kv"
[control]
plugin = "nats"
"""


class KilledNode(TestCase):
    """A node is killed in the middle of atomic lists, and another one is asked for the same."""

    timeout = 60

    async def test_each_list_is_whole_or_not_there_and_a_repeat_stores_it_once(self) -> None:
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        await deferToThread(self.attack, nats.url)

    def attack(self, url: str) -> None:
        with (
            Server(LISTS.format("a", url)) as doomed,
            Server(LISTS.format("b", url)) as other,
            other.client(1, (1,)) as client,
            ThreadPoolExecutor(PUBLISHERS) as pool,
        ):
            stored: list[int] = []
            cut = [
                number
                for numbers in pool.map(lambda first: self.publish(doomed, first, stored), range(PUBLISHERS))
                for number in numbers
            ]
            # Every second one is repeated, and so is one that was answered.
            again = [*cut[::2], stored[0]]
            statuses = [
                status for status, _ in pool.map(lambda number: self.publish_list(other, number), again)
            ]
            self.assertEqual(statuses, [200] * len(again))
            self.assertEqual(self.publish_list(other, END)[0], 200)
            came: list[dict[str, Any]] = []
            while not came or came[-1]["message_id"] != END * SIZE + SIZE - 1:
                frame = client.receive()
                if frame["type"] == "chat_message":
                    came.append(frame)
        for before, frame in pairwise(came):
            self.assertEqual(frame["prev"], before["seq"])
        lists = [frame["message_id"] // SIZE for frame in came][::SIZE]
        self.assertEqual(
            [frame["message_id"] for frame in came],
            [number * SIZE + index for number in lists for index in range(SIZE)],
        )
        self.assertEqual(len(lists), len(set(lists)))
        self.assertLessEqual({*stored, *again, END}, set(lists))
        self.assertLessEqual(set(lists), {*stored, *cut, END})

    def publish(self, server: Server, first: int, stored: list[int]) -> list[int]:
        """Publish lists until the server, which is killed once some are stored, does not answer; return the list without an answer."""
        for number in count(first, PUBLISHERS):
            try:
                self.assertEqual(self.publish_list(server, number)[0], 200)
            except (OSError, HTTPException):
                return [number]
            stored.append(number)
            if len(stored) >= KILLED_AFTER:
                server.process.kill()
        raise AssertionError

    def publish_list(self, server: Server, number: int) -> tuple[int, Any]:
        messages = [
            {
                "subject": "workspace.1.chat.1.messages",
                "payload": {
                    "message_id": number * SIZE + index,
                    "chat_id": 1,
                    "workspace_id": 1,
                    "sender_id": 1,
                    "content": "x",
                    "timestamp": 1700000000,
                },
            }
            for index in range(SIZE)
        ]
        headers = {"Idempotency-Key": f"list-{number}"}
        return server.http("POST", "/v1/publish?atomic=true", messages, **headers)
