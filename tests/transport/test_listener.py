"""The public port."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.transport.listener import is_websocket
from notify.wire.head import MAX_HEAD
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, frame, frames, head


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

    def test_they_do_so_behind_an_authority_too(self) -> None:
        for start, choice in (
            (b"GET h", None),
            (b"GET HTTP:/", None),
            (b"GET http://", None),
            (b"GET http://a.exa", None),
            (b"GET http://a.example/w", None),
            (b"GET http://a.example/ws ", True),
            (b"GET https://a.example:443/ws?", True),
            (b"GET http://a.example/health", False),
            (b"GET http://a.example ", False),
            (b"GET http:///ws ", False),
            (b"GET http://a.example\r\n\r\n", False),
            (b"GET httpx://a/ws ", False),
            (b"GET host/ws ", False),
            (b"GET http://".ljust(MAX_HEAD, b"a"), None),
            (b"GET http://".ljust(MAX_HEAD + 1, b"a"), False),
            (b"GET http://".ljust(MAX_HEAD + 1, b"a") + b"/ws ", False),
            (b"GET http://a.example/ws ".ljust(2 * MAX_HEAD, b"a"), True),
        ):
            self.assertIs(is_websocket(start), choice, start[:40])

    def test_each_goes_to_its_own_with_all_that_was_sent(self) -> None:
        sent = head(*HANDSHAKE) + frame(b'{"type":"ping"}')
        for size in (1, 7, len(sent)):
            wire = Wire().feed(*(sent[at : at + size] for at in range(0, len(sent), size)))
            self.assertEqual((wire.status, len(frames(wire.answer))), (b"101", 1))
            self.assertTrue(wire.transport.no_delay)
            wire = Wire().feed(*(b"GET /hello"[at : at + size] for at in range(0, 10, size)))
            self.assertEqual((wire.status, wire.protocol.seen), (b"299", b"GET /hello"))
