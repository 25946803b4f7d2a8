"""The rules of the opening handshake."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.frames import ENCODINGS, JSON
from notify.handshake import choose_encoding, client_address, origin_allowed, parse_networks
from notify.listener import is_websocket


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


class Choice(SynchronousTestCase):
    def test_the_first_known_subprotocol(self) -> None:
        self.assertEqual(choose_encoding([]), (None, JSON))
        self.assertEqual(choose_encoding(["other"]), (None, JSON))
        batch = "notify.v1.json.batch"
        self.assertEqual(choose_encoding(["x", batch, "notify.v1.json"]), (batch, ENCODINGS[batch]))

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
