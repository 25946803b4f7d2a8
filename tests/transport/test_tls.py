"""TLS on our own ports: works with common browsers and programs, and rejects weak or malformed handshakes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.errors import StartError
from notify.identity import Peer
from notify.transport import tls, upstream
from notify.transport.connection import Connection, SendQueues
from notify.transport.tcp import direct
from notify.transport.upstream import TlsServer
from notify.wire.frames import JSON
from tests.support.browser import Browser
from tests.support.certificates import Authority
from tests.support.process import Server, token
from tests.support.programs import node_modules, program, run
from tests.support.running import LocalServer
from tests.support.transport import Transport

#: opens a WebSocket, authenticates, subscribes, pings, and returns the types of the frames it received; for a
#: browser and for Node
TALK = """
  const [url, token, done] = arguments;
  const socket = new WebSocket(url), frames = [];
  socket.onopen = () => {
    socket.send(JSON.stringify({type: "auth", token}));
    socket.send(JSON.stringify({type: "subscribe", chat_id: 7, id: 1}));
    socket.send(JSON.stringify({type: "ping"}));
  };
  socket.onmessage = (event) => {
    frames.push(JSON.parse(event.data).type);
    if (frames.length == 3) { socket.close(1000); done(frames); }
  };
  socket.onerror = () => done("error");
"""
TALKED = ["auth_result", "subscribed", "pong"]


class Secure(TestCase):
    timeout = 90

    def setUp(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir(parents=True)
        self.authority = Authority(folder)
        # An RSA key, so that suites without forward secrecy would be possible.
        private = rsa.generate_private_key(65537, 2048)
        key, self.certificate = self.authority.issue(x509.DNSName("localhost"), key=private)
        self.keys = f"interface=127.0.0.1:privateKey={key}:certKey={self.certificate}"


class Programs(Secure):
    """Common clients against ``twistd notify`` without a proxy."""

    def server(self) -> Server:
        server = Server()
        text = server.file.read_text()
        plain = f"tcp:{server.public}:interface=127.0.0.1"
        server.file.write_text(text.replace(plain, f"ssl:{server.public}:{self.keys}"))
        return server

    def assertNoFailures(self, server: Server) -> None:
        self.assertNotIn("notify_tls_failures_total{", server.http("GET", "/metrics")[1])

    def test_curl(self) -> Deferred[None]:
        return deferToThread(self.curl)

    def curl(self) -> None:
        curl = program("curl")
        with self.server() as server:
            url = f"https://localhost:{server.public}/health"
            for option in ("--http1.1", "--http2", "--no-alpn"):
                said = run(curl, "-sS", option, "--cacert", self.authority.certificate, url)
                self.assertEqual(json.loads(said), {"status": "ok"}, option)
            self.assertNoFailures(server)

    def test_node(self) -> Deferred[None]:
        return deferToThread(self.node)

    def node(self) -> None:
        node, modules = program("node"), node_modules("ws")
        begin = f"const WebSocket = require({json.dumps(str(modules / 'ws'))});"
        end = "(process.argv[1], process.argv[2], (frames) => console.log(JSON.stringify(frames)))"
        trust = {"NODE_EXTRA_CA_CERTS": str(self.authority.certificate)}
        with self.server() as server:
            url = f"wss://localhost:{server.public}/ws"
            said = run(node, "-e", f"{begin} (function () {{ {TALK} }}){end}", url, token(), environ=trust)
            self.assertEqual(json.loads(said), TALKED)
            self.assertNoFailures(server)

    def test_chromium(self) -> Deferred[None]:
        return deferToThread(self.browse)

    def browse(self) -> None:
        program("chromedriver")
        program("chromium")
        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pin = base64.b64encode(hashlib.sha256(public).digest()).decode()
        with self.server() as server, Browser(f"--ignore-certificate-errors-spki-list={pin}") as browser:
            browser.go(f"https://localhost:{server.public}/health")
            self.assertIn("ok", browser.text("body"))
            self.assertEqual(browser.wait(TALK, f"wss://localhost:{server.public}/ws", token()), TALKED)
            self.assertNoFailures(server)


class Handshakes(Secure):
    """Single handshakes, on both ports."""

    async def start_server(self) -> LocalServer:
        both = f"ssl:0:{self.keys}"
        return await LocalServer(LISTEN__PUBLIC=both, LISTEN__INTERNAL=both).start(self)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.certificate))

    async def shake(self, port: int, context: ssl.SSLContext) -> tuple[Any, ...]:
        """The negotiated version, suite and protocol, or the error."""

        def shake() -> tuple[Any, ...]:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname="localhost") as secure:
                        suite = secure.cipher()
                        self.assertFalse(secure.session and secure.session.has_ticket)
                        return secure.version(), suite[0] if suite else "", secure.selected_alpn_protocol()
                except (ssl.SSLError, ConnectionError) as error:
                    return (error,)

        return await deferToThread(shake)

    async def failures(self, server: LocalServer, expected: dict[tuple[str, str], float]) -> None:
        """Wait until this many handshakes have failed: the server notices when it reads."""
        from twisted.internet import reactor

        [family] = server.hub.metrics.tls_failures.collect()
        while True:
            samples = [one for one in family.samples if one.name.endswith("_total")]
            found = {(one.labels["listener"], one.labels["why"]): one.value for one in samples}
            if found == expected:
                return
            await deferLater(reactor, 0.02, lambda: None)
            [family] = server.hub.metrics.tls_failures.collect()

    def ports(self, server: LocalServer) -> dict[str, int]:
        return {"public": server.service.public.number, "internal": server.service.internal.number}

    async def test_whoever_offers_http_gets_it(self) -> None:
        server = await self.start_server()
        for port in self.ports(server).values():
            for offered in ([], ["http/1.1"], ["h2", "http/1.1"]):
                context = self.trust()
                if offered:
                    context.set_alpn_protocols(offered)
                version, _, chosen = await self.shake(port, context)
                self.assertEqual((version, chosen), ("TLSv1.3", "http/1.1" if offered else None))
        await self.failures(server, {})

    async def test_whoever_does_not_offer_it_is_refused_and_counted(self) -> None:
        server = await self.start_server()
        for port in self.ports(server).values():
            context = self.trust()
            context.set_alpn_protocols(["h2", "ftp"])
            [error] = await self.shake(port, context)
            self.assertIsInstance(error, ssl.SSLError)
        await self.failures(server, {("public", "fault"): 1, ("internal", "fault"): 1})

    async def test_tls_1_2_with_forward_secrecy_and_aead_is_spoken(self) -> None:
        server = await self.start_server()
        for suite in ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"):
            context = self.trust()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(suite)
            version, chosen, _ = await self.shake(server.service.public.number, context)
            self.assertEqual((version, chosen), ("TLSv1.2", suite))

    async def test_what_is_older_or_weaker_is_refused_and_counted(self) -> None:
        server = await self.start_server()
        weaker = (
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256"),  # no forward secrecy
            (ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES128-SHA256"),  # no AEAD
            (ssl.TLSVersion.TLSv1_2, "DHE-RSA-AES128-GCM-SHA256"),  # costs the server most of the work
        )
        for number, (version, suites) in enumerate(weaker, 1):
            for port in self.ports(server).values():
                context = self.trust()
                context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
                context.set_ciphers(suites)
                [error] = await self.shake(port, context)
                self.assertIsInstance(error, (ssl.SSLError, ConnectionError), (version, suites))
            await self.failures(server, {("public", "fault"): number, ("internal", "fault"): number})

    async def test_who_leaves_early_or_speaks_something_else_is_counted(self) -> None:
        server = await self.start_server()
        for what, why in ((b"", "unfinished"), (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "fault")):
            for port in self.ports(server).values():
                with socket.create_connection(("127.0.0.1", port)) as plain:
                    plain.sendall(what)
                    plain.shutdown(socket.SHUT_WR)
            await self.failures(
                server,
                {("public", "unfinished"): 1, ("internal", "unfinished"): 1}
                | ({("public", "fault"): 1, ("internal", "fault"): 1} if why == "fault" else {}),
            )

    async def test_who_is_silent_is_counted_when_patience_is_over(self) -> None:
        both = f"ssl:0:{self.keys}"
        server = await LocalServer(LISTEN__PUBLIC=both, LIMITS__HANDSHAKE_TIMEOUT="100ms").start(self)
        with socket.create_connection(("127.0.0.1", server.service.public.number)) as plain:
            plain.sendall(b"\x16\x03\x01")
            await self.failures(server, {("public", "unfinished"): 1})

    def ask(self, port: int, updates: int) -> bytes:
        """The answer to a request that follows this many key updates; empty if there is none."""
        log = Path(self.mktemp()).resolve()
        context = self.trust()
        context.minimum_version, context.keylog_filename = ssl.TLSVersion.TLSv1_3, str(log)
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context.wrap_bio(into, out, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:

            def when_it_can(step: Callable[[], Any]) -> Any:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        plain.sendall(out.read())
                        came = plain.recv(65536)
                        if not came:
                            return b""
                        into.write(came)

            when_it_can(secure.do_handshake)
            [secret] = re.findall(r"^CLIENT_TRAFFIC_SECRET_0 \S+ (\S+)", log.read_text(), re.MULTILINE)
            key, sent = bytes.fromhex(secret), out.read()
            for _ in range(updates):
                sent += sealed(key, b"\x18\0\0\1\1", 22)  # KeyUpdate, with a request for one in return
                key = expanded(key, b"traffic upd", 48)
            plain.sendall(sent + sealed(key, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 23))
            try:
                answer: bytes = when_it_can(lambda: secure.read(4096))
            except ConnectionError:
                return b""
            return answer

    async def test_who_asks_for_new_keys_without_end_is_cut_off_and_counted(self) -> None:
        server = await self.start_server()
        for port in self.ports(server).values():
            self.assertTrue((await deferToThread(self.ask, port, 8)).startswith(b"HTTP/1.1 200 "))
            self.assertEqual(await deferToThread(self.ask, port, 3000), b"")  # more than one read
        await self.failures(server, {("public", "endless"): 1, ("internal", "endless"): 1})


class Direct(SynchronousTestCase):
    """Frames that go straight to TLS, on a transport without a socket."""

    def setUp(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir(parents=True)
        self.authority = Authority(folder)
        key, certificate = self.authority.issue(x509.DNSName("localhost"))
        self.options = PrivateCertificate.loadPEM(certificate.read_bytes() + key.read_bytes()).options()
        tls.harden(self.options.getContext())

    def connect(self, version: ssl.TLSVersion) -> tuple[Ends, Connection]:
        ends = Ends(self.options, self.authority, version)
        queues = SendQueues(lambda: 10**8, lambda: 10**8, lambda: None)
        above = ends.secure
        connection = Connection("c", Peer(""), JSON, 0.0, Unwired(), above, queues, direct(above))
        above.registerProducer(connection, True)
        return ends, connection

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["write", "write", "hold", "release", "drain", "control"]),
                st.integers(0, 40) | st.integers(16_000, 16_500) | st.integers(0, 100_000),
            ),
            max_size=40,
        ),
        st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
    )
    @settings(max_examples=150, deadline=None)
    def test_order_holds_whatever_happens_between(
        self, steps: list[tuple[str, int]], version: ssl.TLSVersion
    ) -> None:
        ends, connection = self.connect(version)
        ends.below.room = 50_000
        written, controls = [], 0
        for number, (step, size) in enumerate(steps):
            if step == "write":
                frame = b"<" + b"%d," % number * (size // 8 + 1) + b">"
                written.append(frame)
                connection.write(frame)
            elif step == "control":
                controls += 1
                ends.secure.write(b"{pong}")
            elif step == "drain":
                ends.below.drain(size)
            else:
                getattr(connection, step)()
        connection.release()
        while ends.below.buffer or connection.queued:
            ends.below.drain(1000)
        said = ends.said()
        self.assertEqual(said.count(b"{pong}"), controls)
        self.assertEqual(said.replace(b"{pong}", b""), b"".join(written))

    def test_a_frame_is_sent_at_once_and_passes_no_layer_of_twisted(self) -> None:
        ends, connection = self.connect(ssl.TLSVersion.TLSv1_3)
        ends.below.room = 1000
        self.patch(ends.secure, "write", None)
        connection.write(b"one")
        self.assertEqual(ends.said(), b"one")
        connection.write(b"two")
        self.assertEqual((ends.said(), len(ends.below.sends)), (b"two", 2))

    def test_one_that_the_client_can_no_longer_take_disturbs_no_other_client(self) -> None:
        ended, connection = self.connect(ssl.TLSVersion.TLSv1_3)
        other, beside = self.connect(ssl.TLSVersion.TLSv1_3)
        ended.below.room = other.below.room = 1000
        ended.leave()
        connection.write(b"never")
        # OpenSSL has one queue of faults for all connections. What it still holds is raised for one of them.
        self.assertEqual(upstream._openssl.ERR_peek_error(), 0)
        other.hear(b"hello")
        beside.write(b"there")
        self.assertEqual((other.heard, other.said()), ([b"hello"], b"there"))
        self.assertEqual((ended.below.lost, other.below.lost), (True, False))


class Ends:
    """A client, and the server's TLS connection on a :class:`Transport`. What the client is sent, it reads in ``said``."""

    def __init__(self, options: CertificateOptions, authority: Authority, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.minimum_version = context.maximum_version = version
        self._into, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = context.wrap_bio(self._into, self._out, server_hostname="localhost")
        self.heard: list[bytes] = []
        self.below = Transport(100_000)
        factory: Any = TLSMemoryBIOFactory(options, False, Factory.forProtocol(Protocol), Clock())
        factory.protocol = TlsServer
        self.secure: Any = factory.buildProtocol(None)
        self.secure.wrappedProtocol.dataReceived = self.heard.append
        self.secure.makeConnection(self.below)
        shaken = False
        while not (shaken and self.secure.shaken):
            try:
                self._client.do_handshake()
                shaken = True
            except ssl.SSLWantReadError:
                pass
            if self._out.pending:
                self.secure.dataReceived(self._out.read())
            self._take()
        self.below.room = 0
        self.below.sends.clear()

    def _take(self) -> None:
        wire, self.below.wire = self.below.wire, b""
        self._into.write(wire)

    def hear(self, data: bytes) -> None:
        """The client sends this."""
        self._client.write(data)
        self.secure.dataReceived(self._out.read())

    def leave(self) -> None:
        """The client closes TLS, but not what is below it."""
        try:
            self._client.unwrap()
        except ssl.SSLWantReadError:
            self.secure.dataReceived(self._out.read())

    def said(self) -> bytes:
        """Everything that the client was sent since the last call."""
        self._take()
        parts = []
        while True:
            try:
                parts.append(self._client.read(65536))
            except ssl.SSLWantReadError:
                return b"".join(parts)


class Unwired:
    """Nothing below that would close."""

    def say_close(self, code: int, reason: str) -> None:
        raise AssertionError("nothing here closes")

    def gone(self) -> None:
        """The connection sends nothing more."""


def expanded(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1) without a context."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)


def sealed(secret: bytes, content: bytes, kind: int) -> bytes:
    """The first record under a key of TLS_AES_256_GCM_SHA384 (section 5.2)."""
    inner = content + bytes([kind])
    head = b"\x17\3\3" + (len(inner) + 16).to_bytes(2, "big")
    key, nonce = expanded(secret, b"key", 32), expanded(secret, b"iv", 12)
    return head + AESGCM(key).encrypt(nonce, inner, head)


class Descriptions(SynchronousTestCase):
    def test_what_would_do_nothing_is_refused(self) -> None:
        for option in ("sslmethod=TLSv1_METHOD", "dhParameters=/etc/dh.pem"):
            with self.assertRaises(StartError) as caught:
                tls.check("public", f"ssl:443:privateKey=k:{option}")
            self.assertIn(f"listen.public: '{option.partition('=')[0]}' has no use", str(caught.exception))
        tls.check("public", "ssl:443:privateKey=k:certKey=c")
        tls.check("public", "tcp:80")

    def test_a_fault_is_told_in_the_words_of_openssl(self) -> None:
        told = tls.explain(tls.SSL.Error([("SSL routines", "", "no shared cipher")]))
        self.assertEqual(told, "no shared cipher")
        self.assertEqual(tls.explain(tls.SSL.Error([])), "Error")
