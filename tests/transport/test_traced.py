"""What a trace of a user shows of handshakes, frames and closes."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from notify.core.traces import Traces
from notify.core.witness import Seen, TraceOrder
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, frame, head

AUTH = frame(b'{"type":"auth","token":"t"}')


class Traced(SynchronousTestCase):
    def trace(self, **limits: Any) -> Wire:
        """A wire with a trace of user 7 from now on."""
        wire = Wire(origins=("https://app.example",), trusted=("192.168.1.1",), **limits)
        self.traces, self.after = Traces(wire.world.hub, "node-1"), dict[str, int]()
        self.seen()
        return wire

    def seen(self) -> list[Seen]:
        collected = self.traces.collect(TraceOrder("t", 1, 7, everywhere=True, after=self.after))
        self.after = {collected.life: collected.last}
        return collected.events

    def test_who_is_turned_away_and_why(self) -> None:
        wire = self.trace(max_connections=1)
        forwarded = b"X-Forwarded-For: 203.0.113.9"
        wire.feed(head(*HANDSHAKE, forwarded, b"Origin: https://evil.example"))
        [one] = self.seen()
        self.assertEqual((one.what, one.outcome, one.origin), ("turned_away", "403", "https://evil.example"))
        self.assertIn("listen.allowed_origins", one.reason)
        wire.again("192.168.1.2")
        [one] = self.seen()
        self.assertEqual((one.outcome, one.peer), ("limit", "192.168.1.2"))
        self.assertEqual(one.reason, "limits.max_connections is reached")

    def test_a_limit_of_the_address_that_a_proxy_names(self) -> None:
        wire = self.trace(max_connections_per_address=1)
        for _ in range(2):
            wire.again().feed(head(*HANDSHAKE, b"X-Forwarded-For: 203.0.113.9"))
        [one] = self.seen()
        self.assertEqual((one.outcome, one.peer), ("limit", "203.0.113.9"))
        self.assertEqual(one.reason, "203.0.113.9 is over limits.max_connections_per_address")

    def test_what_is_no_handshake_and_a_server_that_starts(self) -> None:
        wire = self.trace()
        wire.feed(head(*HANDSHAKE[:-1]))
        wire.port.welcome = lambda: False
        wire.again().feed(head(*HANDSHAKE))
        first, second = self.seen()
        self.assertIn("no opening handshake", first.reason)
        self.assertEqual((second.outcome, second.reason), ("503", "the server is starting"))

    def test_frames_by_type_and_size(self) -> None:
        wire = self.trace()
        wire.feed(head(*HANDSHAKE, b"X-Forwarded-For: 203.0.113.9"), AUTH)
        connect, auth, result = self.seen()
        self.assertEqual((connect.peer, auth.outcome, result.type), ("203.0.113.9", "ok", "auth_result"))
        wire.feed(
            frame(b'{"type":"subscribe","chat_id":3}'),
            frame(b'{"type":"what"}'),
            frame(b"\0", 2),
        )
        told = self.seen()
        self.assertEqual(
            [(one.what, one.way, one.type, one.size, one.chat_id) for one in told if one.way != "out"],
            [("frame", "in", "subscribe", 32, 3), ("subscribe", "", "", None, 3), ("frame", "in", "invalid", 15, None),
             ("frame", "in", "invalid", 1, None)],
        )  # fmt: skip
        self.assertEqual([one.outcome for one in told if one.way == "out"], ["invalid_message"] * 2)

    def test_a_batch_by_its_first_frame_and_how_many_there_are(self) -> None:
        wire = self.trace()
        wire.feed(head(*HANDSHAKE, b"Sec-WebSocket-Protocol: notify.v1.json.batch"), AUTH)
        self.seen()
        wire.feed(frame(b'[{"type":"ping"},{"type":"ping"}]'), frame(b"[]"))
        first, second = [one for one in self.seen() if one.way == "in"]
        self.assertEqual((first.type, first.count, first.size), ("ping", 2, 33))
        self.assertEqual((second.type, second.size), ("nothing", 2))

    def test_a_slow_client_and_one_that_is_gone(self) -> None:
        for reason, cause, code in (
            ("slow client: its queue passed limits.send_queue", ConnectionDone(), 4001),
            ("gone without a closing handshake", ConnectionLost(), 1006),
        ):
            wire = self.trace(send_queue=100)
            wire.feed(head(*HANDSHAKE), AUTH)
            self.seen()
            if code == 4001:
                connection = wire.protocol.connection
                connection.pauseProducing()
                connection.write(b"x" * 200)
            wire.protocol.connectionLost(Failure(cause))
            [close] = self.seen()
            self.assertEqual((close.what, close.code, close.reason), ("close", code, reason))
            self.assertEqual((close.workspace_id, close.user_id), (1, 7))
