"""The rules of the opening handshake."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from notify.transport.handshake import (
    Request,
    accept,
    client_address,
    origin_allowed,
    parse_networks,
    read_request,
)
from notify.transport.listener import is_websocket
from notify.wire import encodings


class Origins(SynchronousTestCase):
    def test_without_configuration_only_the_same_host(self) -> None:
        for origin, host, allowed in (
            ("", "chat.example", True),
            ("https://chat.example", "chat.example", True),
            ("http://chat.example", "chat.example", True),
            ("http://localhost:8080", "localhost:8080", True),
            ("HTTPS://Chat.Example", "chat.example", True),
            ("https://chat.example:444", "chat.example", False),
            ("https://evil.example", "chat.example", False),
            ("https://chat.example.evil.example", "chat.example", False),
            ("null", "chat.example", False),
            ("https://[::1", "chat.example", False),
            ("https://chat.example:port", "chat.example", False),
            ("file://", "", False),
        ):
            self.assertIs(origin_allowed(origin, host, ()), allowed, (origin, host))

    def test_with_it_exactly_those(self) -> None:
        allowed = ("https://a.example", "http://b.example:8000")
        for origin, may in (
            ("https://a.example", True),
            ("https://a.example:443", True),
            ("http://a.example", False),
            ("https://sub.a.example", False),
            ("http://b.example:8000", True),
            ("http://b.example", False),
            ("https://host", False),
            ("null", False),
        ):
            self.assertIs(origin_allowed(origin, "host", allowed), may, origin)
        self.assertTrue(origin_allowed("null", "host", ("*",)))


class Addresses(SynchronousTestCase):
    def test_forwarded_addresses_are_believed_as_far_as_proxies_are_trusted(self) -> None:
        trusted = parse_networks(["10.0.0.0/8", "::1"])
        for peer, forwarded, address in (
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, 10.0.0.2", "198.51.100.7"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "nonsense", "10.0.0.1"),
            ("::1", "2001:db8::7", "2001:db8::7"),
        ):
            self.assertEqual(client_address(peer, forwarded, trusted), address)
        self.assertEqual(client_address("10.0.0.1", "198.51.100.7", ()), "10.0.0.1")

    def test_networks_that_are_none(self) -> None:
        self.assertRaises(ValueError, parse_networks, ["proxy.example"])


def request(line: str = "GET /ws HTTP/1.1", rest: bytes = b"", **headers: str | None) -> bytes:
    """An opening handshake; a header that is None is left out."""
    fields = {
        "Host": "chat.example",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + rest


def by_autobahn(data: bytes) -> bytes:
    """What autobahn alone answers."""
    factory = WebSocketServerFactory()
    factory.setProtocolOptions(
        allowedOrigins=["*"], allowNullOrigin=True, openHandshakeTimeout=0, webStatus=False
    )

    class Server(WebSocketServerProtocol):
        def onConnect(self, request: Any) -> str | None:
            return encodings.choose(request.protocols)[0]

    factory.protocol = Server
    protocol: Any = factory.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(data)
    return transport.value()


class Requests(SynchronousTestCase):
    def read(self, data: bytes) -> Request | None:
        return read_request(data, "/ws", 16384)

    def test_a_browsers_handshake_is_read(self) -> None:
        found = self.read(
            request(
                "GET /ws?client_id=a%20b HTTP/1.1",
                rest=b"more",
                Origin="https://chat.example",
                Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits",
                Sec_WebSocket_Protocol="notify.v1.json.batch, notify.v1.json",
                X_Forwarded_For="192.0.2.1",
                Cookie="a=b; c=d",
            )
        )
        self.assertEqual(
            found,
            Request(
                "chat.example",
                "https://chat.example",
                "dGhlIHNhbXBsZSBub25jZQ==",
                ("notify.v1.json.batch", "notify.v1.json"),
                "permessage-deflate; client_max_window_bits",
                "192.0.2.1",
                b"more",
            ),
        )

    def test_the_answer_is_the_one_of_the_rfc(self) -> None:
        answer = accept("dGhlIHNhbXBsZSBub25jZQ==", "notify.v1.json")
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", answer)
        self.assertIn(b"Sec-WebSocket-Protocol: notify.v1.json\r\n", answer)
        self.assertNotIn(b"Protocol:", accept("dGhlIHNhbXBsZSBub25jZQ==", None))

    def test_everything_else_is_left_to_autobahn(self) -> None:
        double = request().replace(b"Host:", b"Host: a\r\nHost:", 1)
        for data in (
            b"",
            request()[:-1],
            request("POST /ws HTTP/1.1"),
            request("GET /ws HTTP/1.0"),
            request("GET /ws  HTTP/1.1"),
            request("GET /wsx HTTP/1.1"),
            request("GET /ws#there HTTP/1.1"),
            request("GET /ws?a b HTTP/1.1"),
            request("GET http://chat.example/ws HTTP/1.1"),
            request(Host=None),
            request(Host=""),
            request(Host="chat.example:http"),
            request(Host="chat.example:80:80"),
            request(Upgrade=None),
            request(Upgrade="h2c"),
            request(Connection="close"),
            request(Sec_WebSocket_Version="8"),
            request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ="),
            request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25j!!=="),
            request(Sec_WebSocket_Protocol="a, a"),
            request(Sec_WebSocket_Extensions="permessage-deflate; ="),
            request(X_Long="x" * 20000),
            request(X_Odd="\xe9"),
            request(X_Folded="a\r\n b"),
            request(X_Bare="a\nHost: evil"),
            double,
        ):
            self.assertIsNone(self.read(data), data[:200])

    @given(
        st.sampled_from(
            ["GET /ws HTTP/1.1", "GET /ws?x=1 HTTP/1.1", "GET /ws? HTTP/1.1", "get /ws HTTP/1.1"]
        ),
        st.fixed_dictionaries(
            {},
            optional={
                "Host": st.sampled_from(["a", "a.example:8080", "[::1]:80", "a:", ":80", "", None]),
                "Upgrade": st.sampled_from(["WebSocket", "websocket, h2c", " websocket ", "", None]),
                "Connection": st.sampled_from(["upgrade", "Upgrade,close", "upgraded", "", None]),
                "Sec_WebSocket_Version": st.sampled_from(["13", " 13", "013", "13,8", "7", None]),
                "Sec_WebSocket_Key": st.text("AZaz09+/=-", min_size=20, max_size=26)
                | st.text("AZaz09+/", min_size=22, max_size=22).map(lambda text: text + "=="),
                "Sec_WebSocket_Protocol": st.sampled_from(
                    ["notify.v1.json", "x,notify.v1.protobuf", "a, a", ",", "", None]
                ),
                "Sec_WebSocket_Extensions": st.sampled_from(
                    [
                        "permessage-deflate",
                        "x-unknown; a=1; b",
                        "permessage-deflate; nonsense=9",
                        ";",
                        "",
                        None,
                    ]
                ),
                "X_Any": st.text(st.characters(max_codepoint=255), max_size=20),
            },
        ),
    )
    def test_what_is_accepted_autobahn_accepts_with_the_same_answer(
        self, line: str, headers: dict[str, str | None]
    ) -> None:
        data = request(line, **headers)
        found = self.read(data)
        if found is None or found.extensions:
            return
        ours = accept(found.key, encodings.choose(found.protocols)[0])
        self.assertEqual(sorted(ours.lower().split(b"\r\n")), sorted(_plain(by_autobahn(data))))


def _plain(answer: bytes) -> list[bytes]:
    return [line for line in answer.lower().split(b"\r\n") if not line.startswith(b"server:")]


class Choice(SynchronousTestCase):
    def test_the_first_bytes_tell_a_websocket_from_the_rest(self) -> None:
        for start, choice in (
            (b"", None),
            (b"GET /w", None),
            (b"GET /ws", None),
            (b"GET /ws ", True),
            (b"GET /ws?client_id=1", True),
            (b"GET /wsx", False),
            (b"GET /health", False),
            (b"POST", False),
            (b"\x16\x03\x01", False),
        ):
            self.assertIs(is_websocket(start), choice, start)
