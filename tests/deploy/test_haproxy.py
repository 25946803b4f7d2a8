"""etc/haproxy as it is shipped, with a real HAProxy: stickiness, failing over, and what a lost node moves."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.support.haproxy import HAProxy
from tests.support.natsd import until
from tests.support.programs import program


class Node(Resource):
    """Answers /health, and everything else with its name."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.ready = True
        self.checked = 0
        self.forwarded: set[str] = set()

    def render_GET(self, request: Request) -> bytes:
        if request.path == b"/health":
            self.checked += 1
            request.setResponseCode(200 if self.ready else 503)
        else:
            self.forwarded.add(str(request.getHeader("x-forwarded-for")))
        return self.name.encode()


class Balancing(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        program("haproxy")
        self.nodes = [Node(f"node{n}") for n in (1, 2, 3)]
        self.ports: list[Any] = []
        for node in self.nodes:
            site = Site(node)
            site.noisy = False
            port: Any = reactor.listenTCP(0, site, interface="127.0.0.1")
            self.ports.append(port)
            self.addCleanup(lambda port=port: maybeDeferred(port.stopListening))
        self.haproxy = HAProxy([port.getHost().port for port in self.ports])
        self.addCleanup(self.haproxy.remove)
        self.assertEqual(self.haproxy.check(), "")
        await self.haproxy.start()
        await until(lambda: all(node.checked > 1 for node in self.nodes), 15, "every node is checked")

    async def where(self, ids: range) -> dict[int, str]:
        """Which node each client id leads to."""
        return await deferToThread(lambda: {n: self._ask(f"/ws?client_id=user-{n}") for n in ids})

    def _ask(self, path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.haproxy.port}{path}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return f"status {error.code}"

    async def test_a_client_comes_back_to_its_node_and_a_lost_node_moves_only_its_own(self) -> None:
        before = await self.where(range(150))
        self.assertEqual(set(before.values()), {"node1", "node2", "node3"})
        self.assertEqual(await self.where(range(150)), before)
        await maybeDeferred(self.ports[1].stopListening)
        after = await self.where(range(150))
        moved = {n for n in before if before[n] != after[n]}
        self.assertEqual(moved, {n for n, node in before.items() if node == "node2"})
        self.assertEqual({after[n] for n in moved}, {"node1", "node3"})

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

    async def test_nodes_learn_where_clients_come_from(self) -> None:
        await self.where(range(3))
        self.assertEqual(set().union(*(node.forwarded for node in self.nodes)), {"127.0.0.1"})

    async def test_with_no_node_left_clients_are_told_to_come_again(self) -> None:
        for port in self.ports:
            await maybeDeferred(port.stopListening)
        self.assertEqual(set((await self.where(range(5))).values()), {"status 503"})


class Addresses(TestCase):
    timeout = 60

    def refused(self, port: int, held: list[socket.socket]) -> int:
        """How many connections of this machine are let in before one is not."""
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
            # The look whether it listens was a connection, too, which may or may not be counted any more.
            self.assertIn(found, (let_in - 1, let_in))
