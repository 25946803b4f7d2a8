"""The client's end of a WebSocket as bytes, against a server's end in memory; and over TLS."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from hypothesis import given, settings
from hypothesis.strategies import binary, booleans
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.trial.unittest import TestCase
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from notify.client import AsyncioClient, ClientClosed, TwistedClient, _wire
from notify.client._wire import Address, Closed, Opened, Text, Wire
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer, from_asyncio


class Pair:
    """A client's wire and the server's end of it."""

    def __init__(self, accept: bool = True) -> None:
        self.wire = Wire(Address.parse("ws://h:8080/ws?client_id=1"))
        self.server = WSConnection(ConnectionType.SERVER)
        self.server.receive_data(self.sent())
        (request,) = self.server.events()
        assert isinstance(request, Request)
        self.request = request
        self.opened = self.say(AcceptConnection("notify.v1.json")) if accept else []

    def sent(self) -> bytes:
        data = bytes(self.wire.outgoing)
        self.wire.outgoing.clear()
        return data

    def say(self, *events: Any) -> list[Any]:
        return self.wire.feed(b"".join(self.server.send(event) for event in events))

    def heard(self) -> list[Any]:
        self.server.receive_data(self.sent())
        return list(self.server.events())


class Frames(TestCase):
    def test_the_handshake(self) -> None:
        pair = Pair()
        self.assertEqual((pair.request.host, pair.request.target), ("h:8080", "/ws?client_id=1"))
        self.assertEqual(pair.request.subprotocols, ["notify.v1.json.batch", "notify.v1.json"])
        self.assertEqual(pair.opened, [Opened()])

    def test_text_whole_and_in_fragments_cut_anywhere(self) -> None:
        pair = Pair()
        self.assertEqual(pair.say(TextMessage("one")), [Text("one")])
        parts = [
            pair.server.send(TextMessage("tw", message_finished=False)),
            pair.server.send(Ping(b"still there?")),
            pair.server.send(TextMessage("o ü")),
        ]
        events = [event for byte in b"".join(parts) for event in pair.wire.feed(bytes([byte]))]
        self.assertEqual(events, [Text("two ü")])
        self.assertEqual(pair.heard(), [Pong(bytearray(b"still there?"))])
        pair.wire.send("three")
        self.assertEqual([event.data for event in pair.heard()], ["three"])

    def test_the_servers_close_is_answered_and_ends_it(self) -> None:
        pair = Pair()
        events = pair.say(TextMessage("last"), CloseConnection(1012, '{"retry_after_ms": 5}'))
        self.assertEqual(events, [Text("last"), Closed(1012, '{"retry_after_ms": 5}')])
        (answer,) = pair.heard()
        self.assertEqual(answer.code, 1012)
        self.assertEqual(pair.wire.feed(b"more"), [])

    def test_our_close_is_sent_and_ends_it(self) -> None:
        pair = Pair()
        late = pair.server.send(TextMessage("late"))
        pair.wire.close(3001, "no pong")
        pair.wire.send("said in vain")
        self.assertEqual(pair.heard(), [CloseConnection(3001, "no pong")])
        self.assertEqual(pair.wire.feed(late), [])

    def test_what_is_sent_before_it_is_open_is_dropped(self) -> None:
        pair = Pair(accept=False)
        pair.wire.send("too early")
        self.assertEqual(pair.sent(), b"")

    def test_a_refused_handshake_names_its_status(self) -> None:
        wire = Wire(Address.parse("ws://h/ws"))
        (closed,) = wire.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual((closed.code, "403" in closed.reason), (1006, True))

    def test_what_is_no_websocket_ends_it(self) -> None:
        for data in (b"220 mail.example ESMTP\r\n\r\n", b"HTTP/1.1 101 Sure\r\n\r\n"):
            (closed,) = Wire(Address.parse("ws://h/ws")).feed(data)
            self.assertEqual((data, closed.code), (data, 1002))
        (closed,) = Pair().wire.feed(b"\xff\xff\xff\xff")
        self.assertEqual(closed.code, 1002)

    def test_binary_messages_end_it(self) -> None:
        pair = Pair()
        (closed,) = pair.say(BytesMessage(b"\x00"))
        self.assertEqual(closed.code, 1003)
        self.assertEqual([event.code for event in pair.heard()], [1003])

    @settings(max_examples=300)
    @given(binary(max_size=200), booleans())
    def test_whatever_comes_is_events_and_nothing_else(self, data: bytes, accepted: bool) -> None:
        wire = Pair().wire if accepted else Wire(Address.parse("ws://h/ws"))
        events = wire.feed(data)
        self.assertTrue(all(isinstance(event, Text) for event in events[:-1]))
        self.assertEqual(wire.feed(b"") if events and isinstance(events[-1], Closed) else [], [])

    def test_messages_are_bounded(self) -> None:
        self.patch(_wire, "MAX_MESSAGE", 10)
        pair = Pair()
        self.assertEqual(pair.say(TextMessage("x" * 10)), [Text("x" * 10)])
        self.assertEqual(pair.say(TextMessage("x" * 6, message_finished=False)), [])
        (closed,) = pair.say(TextMessage("x" * 6, message_finished=False))
        self.assertEqual(closed.code, 1009)


class OverTLS(TestCase):
    timeout = 30

    async def _server(self) -> tuple[FakeServer, Path]:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        authority = Authority(folder)
        key, certificate = authority.issue(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = FakeServer()
        await from_asyncio(server.start(tls=context))
        self.addCleanup(lambda: from_asyncio(server.stop()))
        return server, authority.certificate

    async def test_twisted(self) -> None:
        from twisted.internet import reactor

        server, trusted = await self._server()
        root = trustRootFromCertificates([Certificate.loadPEM(trusted.read_bytes())])
        endpoint = wrapClientTLS(
            optionsForClientTLS("127.0.0.1", root), HostnameEndpoint(reactor, "127.0.0.1", server.port)
        )
        async with TwistedClient(server.url, "T1", endpoint=endpoint) as client:
            chat = client.chat(7)
            await chat.ready()
            await from_asyncio(server.publish(7, "a"))
            self.assertEqual((await chat.__anext__()).content, "a")

    async def test_asyncio(self) -> None:
        server, trusted = await self._server()

        async def scenario() -> None:
            context = ssl.create_default_context(cafile=str(trusted))
            async with AsyncioClient(server.url, "T1", tls=context) as client:
                chat = client.chat(7)
                await chat.ready()
                await server.publish(7, "a")
                self.assertEqual((await chat.__anext__()).content, "a")

        await from_asyncio(scenario())

    async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(self) -> None:
        server, _ = await self._server()
        states: list[Any] = []
        client = TwistedClient(server.url, "T1", on_state=states.append)
        starting = ensureDeferred(client.start())
        while not any(state.name == "waiting" for state in states):
            waiter = client._waiter()
            client._later(0.02, lambda waiter=waiter: waiter.fire(None))  # type: ignore[misc]
            await waiter
        await client.close()
        with self.assertRaises(ClientClosed):
            await starting
        self.assertEqual(server.tokens, [])
