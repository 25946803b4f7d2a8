"""docs/cookbook/nginx.md: its commands and its configuration, with a real nginx that ends TLS in front of a real server."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import tomllib
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.certificates import Authority, trust_in_threads
from tests.support.nginx import CONFIG, Nginx
from tests.support.process import Client, Server, token
from tests.support.programs import ROOT, program
from tests.support.recipes import PAGES

CLIENT = "127.0.0.2"
PAGE = (PAGES / "nginx.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"(?m)^```{kind}\n(.*?)^```$", PAGE, re.DOTALL)


class Shown(SynchronousTestCase):
    def test_what_is_shown_of_the_configuration_is_in_the_file(self) -> None:
        shown = blocks("nginx")
        self.assertTrue(shown)
        lines = [line.strip() for line in CONFIG.read_text().splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("#"))
        for block in shown:
            part = "\n".join(line.strip() for line in block.splitlines() if line.strip())
            self.assertIn(part, text)


class InFront(TestCase):
    timeout = 120

    async def setUp(self) -> None:
        program("nginx")
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.authority = Authority(self.folder)
        names = (x509.DNSName("chat.example"), x509.IPAddress(ip_address("127.0.0.1")))
        private, certificate = self.authority.issue(*names)
        (self.folder / "chat.key").write_bytes(private.read_bytes())
        (self.folder / "chat.pem").write_bytes(certificate.read_bytes())

        # The command of the page, except for where it writes.
        [command] = [block for block in blocks("sh") if "sed" in block]
        made = self.folder / "notify.conf"
        command = command.replace("/etc/nginx/conf.d/notify.conf", str(made))
        subprocess.run(["sh", "-euc", command], cwd=ROOT, check=True, timeout=30)
        text = made.read_text()
        self.assertEqual(text.count("server_name chat.example;"), 2)
        self.assertNotIn("notify.example", text)

        # The server's configuration of the page, except for the ports.
        self.text = text
        [toml] = blocks("toml")
        listen = tomllib.loads(toml)["listen"]
        self.assertEqual(listen.pop("internal"), "tcp:8081:interface=127.0.0.1")
        self.assertEqual(listen.pop("public"), "tcp:8080:interface=127.0.0.1")
        await self.start(listen)

    async def start(self, listen: dict[str, Any]) -> None:
        """Start a server with this ``[listen]`` table, and nginx in front of it."""
        extra = "".join(f"{name} = {json.dumps(value)}\n" for name, value in listen.items())
        self.server = Server(f"[listen]\n{extra}")
        await deferToThread(self.server.start)
        self.addCleanup(self.server.__exit__, None, None, None)
        self.nginx = Nginx([self.server.public], ("/etc/ssl/", f"{self.folder}/"), tls=True, text=self.text)
        self.addCleanup(self.nginx.remove)
        await self.nginx.start()

    def connect(self, query: str = "", **more: Any) -> Any:
        trusted = trust_in_threads(self.authority.certificate)
        url = f"wss://127.0.0.1:{self.nginx.port}/ws{query}"
        # The client has an address of its own, which is not nginx's.
        link = socket.create_connection(("127.0.0.1", self.nginx.port), 10, source_address=(CLIENT, 0))
        return connect(url, sock=link, ssl=trusted, close_timeout=1, **more)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        trusted = ssl.create_default_context(cafile=str(self.authority.certificate))
        request = urllib.request.Request(f"https://127.0.0.1:{self.nginx.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:
                # Only the first line, because an event stream does not end.
                return answer.status, answer.readline().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    async def test_pages_get_in_over_tls_and_nothing_else_of_it_is_outside(self) -> None:
        def visit() -> None:
            origin: Any = "https://chat.example"
            with self.connect("?client_id=secret-of-the-query", origin=origin) as link:
                client = Client(link)
                client.send(type="auth", token=token(5))
                self.assertTrue(client.receive()["success"])
                client.send(type="subscribe", chat_id=7, id=1)
                self.assertEqual(client.receive()["type"], "subscribed")
                self.server.publish(7, "through nginx")
                self.assertEqual(client.receive()["content"], "through nginx")
                [connection] = self.server.http("GET", "/v1/connections?user_id=5")[1]["connections"]
                self.assertEqual(connection["client_id"], "secret-of-the-query")
                self.assertEqual(connection["peer"], CLIENT)
            with self.assertRaises(InvalidStatus) as refused:
                self.connect(origin="https://elsewhere.example").close()
            self.assertEqual(refused.exception.response.status_code, 403)
            status, line = self.get(
                "/events?chat=7&client_id=secret-of-the-query", Authorization=f"Bearer {token(5)}"
            )
            self.assertEqual((status, line), (200, "event: auth_result\n"))
            self.assertEqual(self.get("/health")[0], 200)
            for path in (
                "/",
                "/v1/nodes",
                "/v1/publish",
                "/metrics",
                "/admin",
                "/openapi.json",
                "/health/ready",
            ):
                self.assertEqual((path, self.get(path)[0]), (path, 404))
            self.assertNotIn(b"secret-of-the-query", self.nginx.log())
            self.assertIn(b'"GET /ws" 101', self.nginx.log())

        await deferToThread(visit)

    async def test_pages_under_the_same_name_need_no_list_of_origins(self) -> None:
        await self.start({"trusted_proxies": ["127.0.0.1"]})

        def visit() -> None:
            for origin, status in (("https://127.0.0.1", 101), ("https://chat.example", 403)):
                try:
                    with self.connect(origin=origin) as link:
                        found = link.response.status_code
                except InvalidStatus as refused:
                    found = refused.response.status_code
                self.assertEqual((origin, found), (origin, status))

        await deferToThread(visit)

    async def test_what_a_client_says_of_its_address_is_not_believed(self) -> None:
        def visit() -> None:
            with self.connect(additional_headers={"X-Forwarded-For": "192.0.2.7"}) as link:
                client = Client(link)
                client.send(type="auth", token=token(6))
                self.assertTrue(client.receive()["success"])
                [connection] = self.server.http("GET", "/v1/connections?user_id=6")[1]["connections"]
                self.assertEqual(connection["peer"], CLIENT)

        await deferToThread(visit)

    async def test_a_client_that_does_not_trust_the_certificate_does_not_send_its_token(self) -> None:
        def visit() -> None:
            with self.assertRaises(ssl.SSLCertVerificationError):
                connect(f"wss://127.0.0.1:{self.nginx.port}/ws", ssl=ssl.create_default_context()).close()

        await deferToThread(visit)
