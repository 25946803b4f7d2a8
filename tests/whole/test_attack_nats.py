"""Connections to NATS that end at every step of their beginning, while messages are published.

Afterwards broker, presence and control are back by themselves. Every message that was accepted is delivered, once and in order, and none
that was refused.
"""

from __future__ import annotations

import importlib.util
import unittest
from ipaddress import ip_address
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
