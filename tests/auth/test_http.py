"""The bounded HTTP client under the authenticators, over real sockets and real TLS."""

import ipaddress
import os
import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.trial.unittest import TestCase
from twisted.web.server import Request

from notify.auth.http import Client
from notify.errors import Unavailable
from tests.support.auth import serve
from tests.support.certificates import Authority


class Plain(TestCase):
    def make(self, timeout: float = 5.0, most: int = 1000) -> Client:
        client = Client(reactor, timeout, most)
        self.addCleanup(client.close)
        return client

    async def test_sends_json_and_gives_the_whole_answer(self) -> None:
        def echo(request: Request) -> bytes:
            assert request.content is not None
            self.assertEqual(request.getHeader("Content-Type"), "application/json")
            self.assertEqual(request.getHeader("X-Key"), "value")
            request.setResponseCode(418)
            return request.content.read()

        url = await serve(self, echo)
        answer = await self.make().request("POST", url, b'{"a":1}', {"X-Key": "value"})
        self.assertEqual((answer.status, answer.body), (418, b'{"a":1}'))

    async def test_an_answer_may_be_as_long_as_the_bound_and_no_longer(self) -> None:
        length = 1000
        url = await serve(self, lambda request: b"x" * length)
        client = self.make()
        self.assertEqual(len((await client.request("GET", url)).body), 1000)
        length = 1001
        error = await self.assertFailure(client.request("GET", url), Unavailable)
        self.assertIn("too long", str(error))

    async def test_the_timeout_is_for_the_body_too(self) -> None:
        def slow(request: Request) -> Deferred[bytes]:
            request.write(b"a beginning")
            return Deferred()

        url = await serve(self, slow)
        error = await self.assertFailure(self.make(timeout=0.1).request("GET", url), Unavailable)
        self.assertIn("in time", str(error))

    async def test_asks_again_when_a_kept_connection_turns_out_closed(self) -> None:
        class OneAnswerEach(Protocol):
            """Answers its first request and keeps the connection open, then closes it on the second request."""

            answered = False

            def dataReceived(self, data: bytes) -> None:
                asked.append(data)
                assert self.transport is not None
                if self.answered:
                    self.transport.loseConnection()
                else:
                    self.answered = True
                    self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        asked: list[bytes] = []
        port = reactor.listenTCP(0, Factory.forProtocol(OneAnswerEach), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        client = self.make()
        for _ in range(2):
            answer = await client.request("POST", f"http://127.0.0.1:{port.getHost().port}/", b"{}")
            self.assertEqual(answer.body, b"ok")
        self.assertEqual(len(asked), 3)
        await client.close()

    async def test_a_server_that_only_ever_closes_is_asked_twice(self) -> None:
        class Closes(Protocol):
            def dataReceived(self, data: bytes) -> None:
                asked.append(data)
                assert self.transport is not None
                self.transport.loseConnection()

        asked: list[bytes] = []
        port = reactor.listenTCP(0, Factory.forProtocol(Closes), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await self.assertFailure(self.make().request("GET", url), Unavailable)
        self.assertEqual(len(asked), 2)

    async def test_asks_nothing_once_closed(self) -> None:
        asked: list[Request] = []
        url = await serve(self, lambda request: asked.append(request) or b"")
        client = self.make()
        await client.close()
        await self.assertFailure(client.request("GET", url), Unavailable)
        self.assertEqual(asked, [])


class Encrypted(TestCase):
    """TLS: the server's certificate must be valid, and be issued for that server."""

    def certificate(self, host: x509.GeneralName) -> tuple[str, str, str]:
        """The paths of a key, of its certificate, and of the authority's certificate."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        authority = Authority(folder)
        key, certificate = authority.issue(host)
        return str(key), str(certificate), str(authority.certificate)

    async def listen(self, key: str, certificate: str) -> str:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

        class Answers(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(answer)

            def connectionMade(self) -> None:
                connections.append(self)

        connections: list[Protocol] = []
        port = reactor.listenSSL(  # type: ignore[attr-defined]
            0,
            Factory.forProtocol(Answers),
            DefaultOpenSSLContextFactory(key, certificate),
            interface="127.0.0.1",
        )
        self.addCleanup(port.stopListening)
        return f"https://localhost:{port.getHost().port}/"

    async def ask(self, url: str, trusted: str) -> bytes:
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = trusted
        client = Client(reactor, 5, 1000)
        try:
            return (await client.request("GET", url)).body
        finally:
            await client.close()
            if before is None:
                del os.environ["SSL_CERT_FILE"]
            else:
                os.environ["SSL_CERT_FILE"] = before

    async def test_a_certificate_of_a_trusted_authority_for_the_host_is_good(self) -> None:
        key, certificate, trusted = self.certificate(x509.DNSName("localhost"))
        self.assertEqual(await self.ask(await self.listen(key, certificate), trusted), b"ok")

    async def test_an_unknown_authority_is_not(self) -> None:
        key, certificate, _ = self.certificate(x509.DNSName("localhost"))
        *_, other = self.certificate(x509.DNSName("localhost"))
        url = await self.listen(key, certificate)
        await self.assertFailure(Deferred.fromCoroutine(self.ask(url, other)), Unavailable)

    async def test_another_hosts_certificate_is_not(self) -> None:
        for host in (x509.DNSName("localhost.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):
            key, certificate, trusted = self.certificate(host)
            url = await self.listen(key, certificate)
            await self.assertFailure(Deferred.fromCoroutine(self.ask(url, trusted)), Unavailable)
