"""The public port."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.transport.listener import is_websocket


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
