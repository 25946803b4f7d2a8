"""What strangers may occupy of a server, on real sockets: silent ones, one address, and all of its files."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import ssl
from pathlib import Path
from typing import Any

import treq
from cryptography import x509
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.running import SECRET, LocalServer, RawClient, Twistd, token

HALF = b"GET /ws HTTP/1.1\r\nHost: a\r\n"


def sample(metrics: str, name: str) -> float:
    """The value of a metric in the text of /metrics; 0 if it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def dial(port: int, count: int, start: bytes = b"") -> list[socket.socket]:
    """Open this many connections, and send these first bytes on each."""
    links = []
    for _ in range(count):
        link = socket.socket()
        link.settimeout(10)
        # A refused client may be reset before it knows that it is connected.
        with contextlib.suppress(ConnectionError):
            link.connect(("127.0.0.1", port))
            link.sendall(start)
        links.append(link)
    return links


def answered(links: list[socket.socket], count: int) -> dict[socket.socket, bytes]:
    """Wait until the server has closed this many connections; return what each of them received."""
    selector = selectors.DefaultSelector()
    for link in links:
        selector.register(link, selectors.EVENT_READ)
    got: dict[socket.socket, bytes] = {}
    ended: set[socket.socket] = set()
    while len(ended) < count:
        ready = selector.select(20)
        assert ready, f"{len(ended)} of {count} were closed"
        for key, _ in ready:
            link: Any = key.fileobj
            try:
                data = link.recv(65536)
            except ConnectionError:
                data = b""
            got[link] = got.get(link, b"") + data
            if not data:
                ended.add(link)
                selector.unregister(link)
    return {link: got[link] for link in ended}


def close(links: list[socket.socket]) -> None:
    for link in links:
        link.close()


class Sockets(TestCase):
    timeout = 60

    async def metrics(self, server: LocalServer) -> str:
        return str(await (await treq.get(f"{server.api}/metrics", persistent=False)).text())

    async def none_left(self, server: LocalServer) -> None:
        """Wait until the server has noticed that all connections are gone."""
        from twisted.internet import reactor

        front: Any = server.service.public.factory
        while front.admission.sockets:
            await deferLater(reactor, 0.01)

    async def test_no_more_sockets_are_open_than_connections_may_be(self) -> None:
        server = await LocalServer(LIMITS__MAX_CONNECTIONS="10", LIMITS__HANDSHAKE_TIMEOUT="1m").start(self)
        port = server.service.public.number
        for start in (b"", HALF):
            links = await deferToThread(dial, port, 200, start)
            self.addCleanup(close, links)
            refused = await deferToThread(answered, links, 190)
            self.assertEqual(len(refused), 190)
            for answer in refused.values():
                self.assertRegex(
                    answer, rb"\AHTTP/1.1 503 [^\r]*\r\n(.*\r\n)*Retry-After: \d+\r\n(.*\r\n)*\r\n\Z"
                )
            self.assertEqual(sample(await self.metrics(server), "notify_sockets"), 10)
            close(links)
            await self.none_left(server)
        page = await self.metrics(server)
        self.assertEqual(sample(page, 'notify_connections_refused_total{reason="full"}'), 380)
        client = await deferToThread(RawClient, server.ws)
        self.assertEqual(client.status, 101)
        client.close()

    async def test_every_way_to_leave_gives_the_place_back(self) -> None:
        server = await LocalServer(LIMITS__MAX_CONNECTIONS="1", LIMITS__HANDSHAKE_TIMEOUT="250ms").start(self)
        port = server.service.public.number

        def leave(kind: str) -> None:
            if kind in ("open", "in", "closed", "gone"):
                client = RawClient(server.ws)
                assert client.status == 101, kind
                if kind != "open":
                    client.send_json(type="auth", token=token())
                    client.receive()
                if kind == "closed":
                    client.send(b"\x03\xe8", 8)
                    assert client.close_code() == 1000
                if kind == "gone":
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
                return
            starts = {"silent": b"", "half": HALF, "refused": b"GET /ws HTTP/1.1\r\n\r\n"}
            start = starts.get(kind, b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            close(list(answered(dial(port, 1, start), 1)))

        for kind in ("open", "in", "closed", "gone", "silent", "half", "refused", "site", "open"):
            await deferToThread(leave, kind)
            await self.none_left(server)
        front: Any = server.service.public.factory
        self.assertEqual((front.admission.sockets, front.admission.arriving), (0, 0))

    async def test_those_in_the_handshake_are_bounded_and_those_in_are_not_kept_out_by_them(self) -> None:
        server = await LocalServer(LIMITS__MAX_ARRIVING="3", LIMITS__HANDSHAKE_TIMEOUT="1m").start(self)
        inside = await deferToThread(RawClient, server.ws)
        await deferToThread(inside.send_json, type="auth", token=token())
        await deferToThread(inside.receive)
        links = await deferToThread(dial, server.service.public.number, 10, HALF)
        self.addCleanup(close, links)
        refused = await deferToThread(answered, links, 7)
        self.assertTrue(all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused.values()))
        await deferToThread(inside.send_json, type="ping")
        self.assertEqual(json.loads((await deferToThread(inside.receive))[1]), {"type": "pong"})
        inside.close()

    async def test_under_tls_who_is_refused_is_closed_without_a_handshake(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder)
        key, certificate = authority.issue(x509.DNSName("localhost"))
        server = await LocalServer(
            LISTEN__PUBLIC=f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
            LIMITS__MAX_CONNECTIONS="2",
        ).start(self)
        links = await deferToThread(dial, server.service.public.number, 5)
        self.addCleanup(close, links)
        refused = await deferToThread(answered, links, 3)
        self.assertEqual(set(refused.values()), {b""})
        close(links)
        await self.none_left(server)
        trust = ssl.create_default_context(cafile=str(authority.certificate))

        def greet() -> bytes:
            plain = socket.create_connection(("127.0.0.1", server.service.public.number), 10)
            with trust.wrap_socket(plain, server_hostname="localhost") as link:
                link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return bytes(link.recv(12))

        self.assertEqual(await deferToThread(greet), b"HTTP/1.1 200")

    async def test_what_holds_is_said_at_the_start(self) -> None:
        with capturedLogs() as logs:
            await LocalServer(LIMITS__MAX_CONNECTIONS="12").start(self)
        [said] = [one for one in logs if "limits per address" in str(one.get("log_format"))]
        self.assertEqual((said["most"], said["proxies"]), (12, "none"))


class Addresses(TestCase):
    timeout = 60

    async def test_behind_a_trusted_proxy_each_address_has_its_limits(self) -> None:
        server = await LocalServer(
            LISTEN__TRUSTED_PROXIES="127.0.0.1",
            LIMITS__MAX_CONNECTIONS_PER_ADDRESS="2",
        ).start(self)

        async def status(address: str) -> int:
            client = await deferToThread(RawClient, server.ws, X_Forwarded_For=address)
            self.addCleanup(client.close)
            if client.status == 429:
                self.assertIn("\r\nRetry-After: ", client.head)
            return client.status

        found = [await status(one) for one in ("9.9.9.9", "::ffff:9.9.9.9", "9.9.9.9", "9.9.9.8", "10.1.1.1")]
        self.assertEqual(found, [101, 101, 429, 101, 101])
        # There is no limit for internal addresses, nor for the proxy itself.
        self.assertEqual([await status(one) for one in ("10.1.1.1", "10.1.1.1", "", "", "")], [101] * 5)

    async def test_on_a_listener_for_both_versions_a_proxy_is_known_by_its_ipv4_address(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        port = free_port()
        server = Twistd(
            "-n",
            "--pidfile=",
            "notify",
            cwd=folder,
            NOTIFY_LISTEN__PUBLIC=f"tcp6:{port}",
            NOTIFY_LISTEN__INTERNAL="tcp:0:interface=127.0.0.1",
            NOTIFY_LISTEN__TRUSTED_PROXIES="127.0.0.1",
            NOTIFY_AUTH__JWT__SECRET=SECRET,
        )
        self.addCleanup(server.kill)
        await server.says("ready: public")
        for forwarded, host in (
            ("9.9.9.9", "9.9.9.9"),
            ("9.9.9.8, ::ffff:9.9.9.7", "9.9.9.7"),
            ("", "127.0.0.1"),
            ("fe80::1%<img src=x>", "fe80::1"),
            ("<script>", "127.0.0.1"),
        ):
            client = await deferToThread(RawClient, f"ws://127.0.0.1:{port}/ws", X_Forwarded_For=forwarded)
            said = server.output.count(f"from {host} is refused")
            await deferToThread(client.send_json, type="auth", token="nonsense")
            self.assertEqual(await deferToThread(client.close_code), 4500)
            await server.says(rf"(from {host} is refused[\s\S]*){{{said + 1}}}")
            client.close()
        self.assertNotIn("<", server.output)

    async def test_who_has_shown_a_token_is_no_arrival_any_more(self) -> None:
        server = await LocalServer(
            LISTEN__TRUSTED_PROXIES="127.0.0.1", LIMITS__MAX_ARRIVING_PER_ADDRESS="1"
        ).start(self)
        clients = []
        for user in (1, 2):
            client = await deferToThread(RawClient, server.ws, X_Forwarded_For="9.9.9.9")
            self.assertEqual(client.status, 101)
            if user == 1:
                refused = await deferToThread(RawClient, server.ws, X_Forwarded_For="9.9.9.9")
                self.assertEqual(refused.status, 429)
            await deferToThread(client.send_json, type="auth", token=token(user))
            self.assertIn(b'"success":true', (await deferToThread(client.receive))[1])
            clients.append(client)
        for client in clients:
            client.close()


class Files(TestCase):
    timeout = 60

    async def test_out_of_files_the_internal_port_answers_and_it_is_said_once(self) -> None:
        public = free_port()
        await self.run_out(f"tcp:{public}:interface=127.0.0.1", public)

    async def test_so_it_does_where_the_server_ends_tls(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        key, certificate = Authority(folder).issue(x509.DNSName("localhost"))
        public = free_port()
        await self.run_out(
            f"ssl:{public}:interface=127.0.0.1:privateKey={key.resolve()}:certKey={certificate.resolve()}",
            public,
        )

    async def run_out(self, endpoint: str, public: int) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        internal = free_port()
        server = Twistd(
            "-n",
            "--pidfile=",
            "notify",
            cwd=folder,
            by=("/bin/sh", "-c", 'ulimit -n 128 && exec "$@"', "sh"),
            NOTIFY_LISTEN__PUBLIC=endpoint,
            NOTIFY_LISTEN__INTERNAL=f"tcp:{internal}:interface=127.0.0.1",
            NOTIFY_AUTH__JWT__SECRET=SECRET,
            NOTIFY_LIMITS__MAX_CONNECTIONS="0",
            NOTIFY_LIMITS__HANDSHAKE_TIMEOUT="1m",
        )
        self.addCleanup(server.kill)
        await server.says("ready: public")
        links = await deferToThread(dial, public, 300)
        self.addCleanup(close, links)
        refused = await deferToThread(answered, links, 190)
        self.assertEqual(set(refused.values()), {b""})
        for path in ("health/live", "health/ready", "metrics") * 3:
            response = await treq.get(f"http://127.0.0.1:{internal}/{path}", persistent=False)
            page = await response.text()
            self.assertEqual(response.code, 200, path)
        self.assertGreaterEqual(sample(page, 'notify_connections_refused_total{reason="files"}'), 190)
        self.assertEqual(server.output.count("connections are refused: all files but a reserve"), 1)
        self.assertNotIn("EMFILE", server.output)
        self.assertNotIn("Traceback", server.output)
        self.assertLess(sample(page, "notify_sockets"), 128 - 16)
        close(links)
        while sample(page, "notify_sockets"):
            page = await (await treq.get(f"http://127.0.0.1:{internal}/metrics", persistent=False)).text()
        [one] = await deferToThread(dial, public, 1)
        while sample(page, "notify_sockets") != 1:
            page = await (await treq.get(f"http://127.0.0.1:{internal}/metrics", persistent=False)).text()
        one.close()
