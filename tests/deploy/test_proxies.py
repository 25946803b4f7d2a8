"""etc/haproxy and etc/nginx as shipped, in the real proxies: stickiness, failover, what a lost node moves, logs."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.support.haproxy import HAProxy
from tests.support.natsd import pause, until
from tests.support.nginx import Nginx, advised
from tests.support.programs import program


class Node(Resource):
    """A node that answers /health, and everything else with its name."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.ready = True
        self.checked = 0
        self.forwarded: set[str] = set()
        self.channels: set[Any] = set()

    def render_GET(self, request: Request) -> bytes:
        self.channels.add(request.channel)
        if request.path == b"/health":
            self.checked += 1
            request.setResponseCode(200 if self.ready else 503)
        else:
            self.forwarded.add(str(request.getHeader("x-forwarded-for")))
        return self.name.encode()


class Balancing:
    """Tests that hold behind each proxy as it is shipped."""

    timeout = 60
    proxy: Any
    ports: list[Any]
    nodes: list[Node]

    async def listen(self: Any) -> list[int]:
        self.nodes = [Node(f"node{n}") for n in (1, 2, 3)]
        self.ports = []
        for node in self.nodes:
            site = Site(node)
            site.noisy = False
            port: Any = reactor.listenTCP(0, site, interface="127.0.0.1")
            self.ports.append(port)
            self.addCleanup(lambda port=port: maybeDeferred(port.stopListening))
        return [port.getHost().port for port in self.ports]

    async def lose(self, number: int) -> None:
        """Stop a node, and cut the connections that the proxy keeps to it."""
        await maybeDeferred(self.ports[number].stopListening)
        for channel in self.nodes[number].channels:
            channel.transport.abortConnection()

    async def where(self, ids: range) -> dict[int, str]:
        """The node that each client id leads to."""
        return await deferToThread(lambda: {n: self.ask(f"/ws?client_id=user-{n}") for n in ids})

    def ask(self, path: str, port: int | None = None) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.proxy.port}{path}")
        try:
            with urllib.request.build_opener(Stay).open(request, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return f"status {error.code}"

    async def test_a_client_comes_back_to_its_node_and_a_lost_node_moves_only_its_own(self: Any) -> None:
        before = await self.where(range(150))
        self.assertEqual(set(before.values()), {"node1", "node2", "node3"})
        self.assertEqual(await self.where(range(150)), before)
        await self.lose(1)
        after = await self.where(range(150))
        moved = {n for n in before if before[n] != after[n]}
        self.assertEqual(moved, {n for n, node in before.items() if node == "node2"})
        self.assertEqual({after[n] for n in moved}, {"node1", "node3"})
        self.assertEqual(await self.where(range(150)), after)

    async def test_clients_without_an_id_are_spread(self: Any) -> None:
        for path in ("/ws", "/ws?other=1"):
            led = await deferToThread(lambda path=path: Counter(self.ask(path) for _ in range(60)))
            self.assertEqual(set(led), {"node1", "node2", "node3"})
            self.assertLess(max(led.values()), 40)

    async def test_nodes_learn_where_clients_come_from(self: Any) -> None:
        await self.where(range(3))
        self.assertEqual(set().union(*(node.forwarded for node in self.nodes)), {"127.0.0.1"})

    async def test_with_no_node_left_clients_are_told_to_come_again(self: Any) -> None:
        for number in range(3):
            await self.lose(number)
        found = set((await self.where(range(5))).values())
        self.assertTrue(found <= {"status 502", "status 503"}, found)

    async def test_no_query_is_in_its_logs_whatever_becomes_of_the_request(self: Any) -> None:
        path = "/ws?client_id=in-the-query&token=in-the-query"
        self.assertIn("node", await deferToThread(self.ask, path))
        for number in range(2):
            await self.lose(number)
            self.assertIn("node", await deferToThread(self.ask, path))
        await self.lose(2)
        self.assertIn("status 50", await deferToThread(self.ask, path))
        await self.others(path)
        await until(lambda: self.proxy.log().count(b"/ws") >= 4, 10, "it is logged")
        self.assertNotIn(b"in-the-query", self.proxy.log())

    async def others(self, path: str) -> None:
        """Check what else this proxy answers."""


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: Any) -> None:
        return None


class HAProxyTests(Balancing, TestCase):
    async def setUp(self) -> None:
        program("haproxy")
        self.proxy = HAProxy(await self.listen())
        self.addCleanup(self.proxy.remove)
        self.assertEqual(self.proxy.check(), "")
        await self.proxy.start()
        await until(lambda: all(node.checked > 1 for node in self.nodes), 15, "every node is checked")

    async def test_a_node_that_is_not_ready_gets_nothing_new_and_comes_back(self) -> None:
        before = await self.where(range(30))
        self.nodes[0].ready = False

        async def settled(ready: bool) -> None:
            for _ in range(300):
                now = await self.where(range(30))
                if ("node1" in now.values()) == ready:
                    return
            self.fail(f"node1 {'gets nothing' if ready else 'still gets clients'}")

        await settled(False)
        self.nodes[0].ready = True
        await settled(True)
        self.assertEqual(await self.where(range(30)), before)


class NginxTests(Balancing, TestCase):
    async def setUp(self) -> None:
        program("nginx")
        self.proxy = Nginx(await self.listen())
        self.addCleanup(self.proxy.remove)
        await self.proxy.start()

    async def others(self, path: str) -> None:
        self.assertEqual(await deferToThread(self.ask, path, self.proxy.redirecting), "status 301")


class Silent(Protocol):
    """A node that accepts connections and sends nothing."""

    def connectionMade(self) -> None:
        self.factory.held.append(self)  # type: ignore[union-attr]


class NginxConnections(TestCase):
    timeout = 60

    def test_what_is_advised_is_for_16000_clients_a_worker(self) -> None:
        files, connections = advised()
        self.assertGreaterEqual(connections, 2 * 16_000)
        self.assertGreater(files, connections)

    async def test_a_client_takes_two(self) -> None:
        program("nginx")
        factory: Any = Factory.forProtocol(Silent)
        factory.held, factory.noisy = [], False
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        nginx = Nginx([port.getHost().port], connections=40)
        self.addCleanup(nginx.remove)
        await nginx.start()
        held: list[socket.socket] = []
        self.addCleanup(lambda: [link.close() for link in held])
        while b"worker_connections are not enough" not in nginx.log():
            held.append(socket.create_connection(("127.0.0.1", nginx.port), 10))
            held[-1].sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
            await pause(0.02)
        # nginx needs a few connections for itself.
        self.assertIn(len(factory.held), range(17, 21))


class Addresses(TestCase):
    timeout = 60

    def refused(self, port: int, held: list[socket.socket]) -> int:
        """How many connections from this machine are let in before one is refused."""
        while True:
            try:
                link = socket.create_connection(("127.0.0.1", port), 10)
                link.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
                let_in = bool(link.recv(12))
            except ConnectionError:
                let_in = False
            if not let_in:
                return len(held)
            held.append(link)

    async def test_an_address_has_only_so_many_connections(self) -> None:
        node = Site(Node("node1"))
        node.noisy = False
        port: Any = reactor.listenTCP(0, node, interface="127.0.0.1")
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        one = port.getHost().port
        for changes, let_in in (
            ((("sc0_conn_cur gt 1000", "sc0_conn_cur gt 3"),), 3),
            ((("sc0_conn_rate gt 2000", "sc0_conn_rate gt 5"),), 5),
        ):
            haproxy = HAProxy(
                [one, one, one], ("    tcp-request connection accept if inside\n", ""), *changes
            )
            self.addCleanup(haproxy.remove)
            await haproxy.start()
            held: list[socket.socket] = []
            found = await deferToThread(self.refused, haproxy.port, held)
            for link in held:
                link.close()
            # The check that it listens was a connection, too, which may or may not still be counted.
            self.assertIn(found, (let_in - 1, let_in))
