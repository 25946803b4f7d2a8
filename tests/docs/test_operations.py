"""The procedures in docs/operations work."""

from __future__ import annotations

import re
import shutil
import tempfile
import textwrap
from pathlib import Path

import nkeys
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect

from tests.support.certificates import Authority, trust_in_threads
from tests.support.cli import command
from tests.support.process import Client, Server, token
from tests.support.programs import program, run

TOP = Path(__file__).parent.parent.parent
PAGES = TOP / "docs" / "operations"


def blocks(page: Path) -> list[str]:
    """The examples of a page: indented, or fenced TOML."""
    text = page.read_text()
    found = re.findall(r"(?m)(?:^(?: {4}.*)?\n)+", text) + re.findall(r"(?ms)^```toml\n(.*?)^```$", text)
    return [textwrap.dedent(block).strip("\n") for block in found if block.strip()]


class PagesTests(TestCase):
    def test_every_page_is_linked_and_every_link_leads_somewhere(self) -> None:
        index = (PAGES / "README.md").read_text()
        for page in PAGES.glob("*.md"):
            if page.name != "README.md":
                self.assertIn(f"({page.name})", index)
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

    def test_every_configuration_in_them_starts_over_the_one_that_is_installed(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        key, certificate = Authority(folder).issue(x509.DNSName("x"), name="tls")
        for name, text in {
            "jwt.secret": "0" * 32,
            "jwt": "1" * 32,
            "api.keys": "0123456789abcdef",
            "tls.key": key.read_text(),
            "tls.pem": certificate.read_text(),
            "chain.pem": certificate.read_text(),
            "nats-ca.pem": certificate.read_text(),
            "nats.seed": nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode(),
        }.items():
            (folder / name).write_text(text)

        def here(text: str) -> str:
            return re.sub(r"(?:/etc/notify|/run/credentials/notify\.service)/", f"{folder}/", text)

        shared = folder / "notify.toml"
        shared.write_text(here((TOP / "debian/notify.toml").read_text()))
        count = 0
        for page in (*sorted(PAGES.glob("*.md")), PAGES.parent / "jetstream.md"):
            for block in blocks(page):
                tables = re.findall(r"(?ms)^\[[a-z_.]+\]\n.*?(?=^# systemctl|^\[Service|\Z|^\n)", block)
                text = "\n".join(part for part in tables if "=" in part)
                text = re.sub(r"(?m)^(systemctl|ssh|curl|notify) .*$", "", text)
                if not text:
                    continue
                own = folder / "own.toml"
                own.write_text(here(text))
                result = command("check-config", str(shared), str(own))
                self.assertEqual(result.status, 0, f"{page.name}:\n{text}\n{result.err}")
                count += 1
        self.assertGreater(count, 7)

    def test_files_and_programs_that_they_name_exist(self) -> None:
        for page in PAGES.glob("*.md"):
            for name in re.findall(r"`((?:etc|deploy|tests|debian)/[\w./-]+)`", page.read_text()):
                self.assertTrue((TOP / name).exists(), f"{page.name}: {name}")


class TLSByItselfTests(TestCase):
    timeout = 60

    def test_the_endpoint_in_the_page_serves_wss(self) -> Deferred[None]:
        return deferToThread(self.serve)

    def serve(self) -> None:
        (endpoint,) = re.findall(r'public = "(ssl:.*)"', (PAGES / "tls.md").read_text())
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        run(
            program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "1", "-subj", "/CN=x", "-keyout", folder / "tls.key", "-out", folder / "tls.pem",
        )  # fmt: skip
        shutil.copy(folder / "tls.pem", folder / "chain.pem")
        server = Server()
        endpoint = endpoint.replace("/etc/notify", str(folder)).replace("ssl:8443:", f"ssl:{server.public}:")
        text = server.file.read_text().replace(f"tcp:{server.public}", endpoint)
        server.file.write_text(text)
        context = trust_in_threads(folder / "tls.pem")
        context.check_hostname = False
        url = f"wss://127.0.0.1:{server.public}/ws"
        with server, connect(url, ssl=context, close_timeout=1) as connection:
            client = Client(connection)
            client.send(type="auth", token=token())
            self.assertTrue(client.receive()["success"])
            client.send(type="subscribe", chat_id=1, id=1)
            client.receive()
            for number in range(20):
                self.assertEqual(server.publish(1, "x" * 20_000, number)[0], 200)
            self.assertEqual({len(client.receive()["content"]) for _ in range(20)}, {20_000})
            server.process.terminate()
            self.assertEqual(client.closed()[0], 1012)
            self.assertEqual(server.process.wait(10), 0)
