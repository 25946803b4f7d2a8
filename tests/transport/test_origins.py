"""What allowed_origins may contain, and which pages it admits."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from notify.observe import logging
from notify.transport.origins import name_of, origin_allowed, parse_origins
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, head


class Allowed(SynchronousTestCase):
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
        allowed = parse_origins(("https://a.example", "http://b.example:8000"))
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

    def test_a_wildcard_is_one_label_or_more(self) -> None:
        allowed = parse_origins(("https://*.chat.example", "https://*.b.example:8443"))
        for origin, may in (
            ("https://a.chat.example", True),
            ("https://A.B.chat.example:443", True),
            ("https://chat.example", False),
            ("https://.chat.example", False),
            ("https://evilchat.example", False),
            ("https://a.chat.example.evil.example", False),
            ("http://a.chat.example", False),
            ("https://a.chat.example:444", False),
            ("https://a.b.example:8443", True),
            ("https://a.b.example", False),
            ("https://*.chat.example", False),
        ):
            self.assertIs(origin_allowed(origin, "host", allowed), may, origin)

    def test_apps_and_extensions_are_let_in_by_their_whole_name_alone(self) -> None:
        allowed = parse_origins(["capacitor://localhost", "https://chat.example"])
        for origin, may in (
            ("capacitor://localhost", True),
            ("CAPACITOR://localhost", True),
            ("capacitor://localhost:1", False),
            ("ionic://localhost", False),
            ("https://localhost", False),
            ("capacitor://chat.example", False),
        ):
            self.assertIs(origin_allowed(origin, "localhost", allowed), may, origin)
        self.assertFalse(origin_allowed("capacitor://localhost", "localhost", ()))
        self.assertEqual(name_of("capacitor://localhost"), "capacitor://localhost")
        self.assertEqual(name_of("capacitor://<b>"), "none that can be named")


class Parsed(SynchronousTestCase):
    def test_as_browsers_write_it(self) -> None:
        for text, origin in (
            ("*", "*"),
            ("https://chat.example", "https://chat.example"),
            (" HTTPS://Chat.Example ", "https://chat.example"),
            ("https://chat.example:443", "https://chat.example"),
            ("http://chat.example:80", "http://chat.example"),
            ("https://chat.example:80", "https://chat.example:80"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://BÜCHER.example:444", "https://xn--bcher-kva.example:444"),
            ("https://straße.example", "https://xn--strae-oqa.example"),
            ("https://*.bücher.example", "https://*.xn--bcher-kva.example"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("http://localhost:8080", "http://localhost:8080"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://[0:0::1]", "http://[::1]"),
            ("http://my_host", "http://my_host"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("Chrome-Extension://abcdefgh", "chrome-extension://abcdefgh"),
        ):
            self.assertEqual(parse_origins([text]), (origin,), text)
            if origin != "*" and "*" not in origin:
                self.assertTrue(origin_allowed(origin, "elsewhere", (origin,)))

    def test_what_can_never_match_is_refused_with_what_to_do(self) -> None:
        for text, why in (
            ("chat.example", "has no scheme: write it like 'https://chat.example'"),
            ("chat.example:443", "has no scheme"),
            ("", "has no scheme"),
            ("null", "sandboxed frames"),
            ("NULL", "sandboxed frames"),
            ("wss://chat.example", "the scheme is that of the page"),
            ("file://x", "the scheme is that of the page"),
            ("capacitor://*", "the scheme is that of the page"),
            ("https://", "no name"),
            ("https://chat.example/", "more than scheme, host and port"),
            ("https://chat.example/app", "more than scheme, host and port"),
            ("https://chat.example:0", "port 0"),
            ("https://chat.example?x", "more than scheme, host and port"),
            ("https://u@chat.example", "more than scheme, host and port"),
            ("https://chat.example:https", "no origin"),
            ("https://chat.example:65536", "no origin"),
            ("https://[::1", "no origin"),
            ("https://127.1", "no origin"),
            ("https://a..b", "no origin"),
            ("https://a,https://b", "more than"),
            ("https://a\u2028b.example", "more than"),
            ("https://\u0378.example", "no origin"),
            ("https://*", "whole labels"),
            ("https://a.*.example", "whole labels"),
            ("https://*a.example", "whole labels"),
            ("https://*.*.example", "whole labels"),
            ("https://*.example", "too wide"),
            ("https://*.com", "too wide"),
            ("https://*.com.", "too wide"),
            ("https://*.127.0.0.1", "too wide"),
            ("https://*.[::1]", "too wide"),
        ):
            with self.assertRaises(ValueError) as caught:
                parse_origins(["https://good.example", text])
            self.assertIn(why, str(caught.exception), text)


class Told(SynchronousTestCase):
    """A refused page leaves a trace in log and metrics."""

    def test_a_refused_origin_is_counted_and_logged(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        wire = Wire(origins=("https://a.example",))
        for origin in (b"https://Evil.example:443", b"null", b"https://" + b"x" * 1000):
            self.assertEqual(wire.again().feed(head(*HANDSHAKE, b"Origin: " + origin)).status, b"403")
        self.patch(logging, "takes_debug", lambda namespace: True)
        wire.again().feed(head(*HANDSHAKE, b"Upgrade: h2c"))
        self.assertEqual(wire.again().feed(head(*HANDSHAKE, b"Host: twice")).status, b"400")
        told = [formatEvent(event) for event in events if "status" in event]
        self.assertRegex(told[0], r"a handshake from \S* ?is refused with 4\d\d")
        said = [formatEvent(event) for event in events if "origin" in event]
        self.assertEqual([event["log_level"].name for event in events if "origin" in event], ["info"] * 3)
        self.assertIn("https://evil.example, which listen.allowed_origins does not name", said[0])
        self.assertIn("none that can be named", said[1])
        self.assertLess(len(said[2]), 300)
        value = wire.world.hub.metrics.registry.get_sample_value
        self.assertEqual(value("notify_handshakes_refused_total", {"status": "403"}), 3)
