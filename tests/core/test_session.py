"""The session, without a socket: frames in order, faults, floods, and requests for large answers."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits
from notify.identity import Identity
from notify.testing import chat_payload
from notify.topics import chat
from tests.support.world import World


class Original(SynchronousTestCase):
    """A client that knows only the original messages."""

    def test_auth_subscribe_message_unsubscribe_ping(self) -> None:
        world = World()
        client = world.client(user_id=7)
        [result] = client.result
        self.assertEqual((result["type"], result["success"], result["user_id"]), ("auth_result", True, 7))
        client.send(type="subscribe", chat_id=10)
        self.assertEqual(client.take(), [])
        world.publish(chat(1, 10), chat_payload(chat(1, 10), 5, "hi", 3))
        world.turn()
        [message] = client.take()
        del message["epoch"]
        self.assertEqual(
            message,
            {
                "type": "chat_message",
                "chat_id": 10,
                "message_id": 5,
                "sender_id": 3,
                "content": "hi",
                "timestamp": 1700000000,
                "seq": 1,
                "prev": 0,
            },
        )
        client.send(type="unsubscribe", chat_id=10)
        world.publish(chat(1, 10), chat_payload(chat(1, 10)))
        world.turn()
        self.assertEqual(client.take(), [])
        self.assertEqual(client.ask(type="ping"), {"type": "pong"})

    def test_ping_is_answered_before_auth(self) -> None:
        self.assertEqual(World().connect().ask(type="ping"), {"type": "pong"})

    def test_subscribe_before_auth_is_unauthorized_and_auth_still_works(self) -> None:
        world = World()
        client = world.connect()
        for frame in ({"type": "subscribe", "chat_id": 1}, {"type": "unsubscribe", "chat_id": 1}):
            self.assertEqual(client.ask(**frame)["code"], "unauthorized")
        world.authenticator.tokens["t"] = Identity(1, 1)
        self.assertTrue(client.ask(type="auth", token="t")["success"])


class Faults(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.bystander = self.world.client(user_id=99)
        self.client = self.world.client()

    def test_every_malformed_frame_is_answered_and_too_many_close_with_4502(self) -> None:
        bad: list[tuple[bytes, Any]] = [
            (b"", None),
            (b"{", None),
            (b"[]", None),
            (b'{"type":"zap","id":4}', 4),
            (b'{"chat_id":1,"id":"x"}', "x"),
            (b'{"type":"subscribe","chat_id":"1","id":5}', 5),
            (b'{"type":"subscribe","chat_id":9223372036854775808,"id":6}', 6),
            (b'{"type":"subscribe","chat_id":NaN}', None),
            (b'{"type":"ping","x":' + b"[" * 60000 + b"}", None),
        ]
        for payload, id in bad:
            self.client.raw(payload)
            [error] = self.client.take()
            self.assertEqual((error["code"], error.get("id")), ("invalid_message", id))
        self.assertIsNone(self.client.closed)
        self.client.raw(b"{")
        self.assertEqual(self.client.closed[0], 4502)
        self.assertEqual((self.bystander.take(), self.bystander.closed), ([], None))

    def test_an_error_never_quotes_the_frame(self) -> None:
        for payload in (
            b'{"type":"s3cret"}',
            b'{"type":"auth","token":["s3cret"]}',
            b"s3cret",
            b'{"s3cret":1}',
        ):
            self.client.raw(payload)
            self.assertNotIn("s3cret", str(self.client.take()))

    def test_frames_over_the_rate_are_refused_and_a_flood_closes_with_4504(self) -> None:
        world = World(Limits(frames_per_second=10, frames_burst=20))
        client = world.connect()
        for _ in range(20):
            client.send(type="ping")
        self.assertEqual({f["type"] for f in client.take()}, {"pong"})
        refused = client.ask(type="ping", id=1)
        self.assertEqual((refused["code"], refused["retry"], refused["id"]), ("rate_limited", True, 1))
        world.clock.advance(0.3)
        self.assertEqual(client.ask(type="ping")["type"], "pong")
        for _ in range(30):
            client.send(type="ping")
        self.assertEqual(client.closed[0], 4504)

    def test_the_rate_is_not_measured_by_the_time_of_day(self) -> None:
        world = World(Limits(frames_per_second=10, frames_burst=20))
        client = world.connect()
        for step in range(20):
            world.hub.now = lambda step=step: 1e9 + 3600 * step  # type: ignore[misc]
            client.send(type="ping")
        self.assertEqual(client.ask(type="ping", id=1)["code"], "rate_limited")

    def test_a_session_that_waits_is_no_longer_read_from(self) -> None:
        self.world.authenticator.held = []
        for n in range(100):
            self.client.send(type="subscribe", chat_id=n)
            self.assertEqual(self.client.connection.throttled, n > 64)
        self.world.authenticator.release()
        self.assertFalse(self.client.connection.throttled)
        self.assertEqual(self.world.sample("notify_subscriptions"), 100)

    def test_a_thousand_frames_at_once_are_worked_off_without_recursion(self) -> None:
        from notify.wire.frames import Subscribe

        self.client.session.received([Subscribe(n, id=n) for n in range(999)])
        self.assertEqual(len(self.client.take()), 999)

    def test_after_a_close_nothing_is_answered(self) -> None:
        self.world.clock.advance(0)
        client = self.world.client(expires_in=1)
        self.world.clock.advance(2)
        client.take()
        client.send(type="ping")
        self.assertEqual(client.take(), [])

    def test_limits_that_are_replaced_hold_from_then_on(self) -> None:
        self.world.reload(limits=Limits(max_subscriptions=1, auth_timeout=Duration(1)))
        self.client.send(type="subscribe", chat_id=1)
        self.assertEqual(self.client.ask(type="subscribe", chat_id=2, id=1)["code"], "too_many_subscriptions")


class Amplification(SynchronousTestCase):
    """A frame of a hundred bytes may ask for a megabyte, but not again and again at once."""

    def setUp(self) -> None:
        self.world = World(Limits(frames_per_second=0))
        self.client = self.world.client()

    def fill(self, chat_id: int, messages: int) -> str:
        topic = chat(1, chat_id)
        for n in range(messages):
            self.world.publish(topic, chat_payload(topic, n))
        return self.world.broker._epoch

    def answered(self) -> int:
        return sum(frame["type"] == "subscribed" for frame in self.client.take())

    def test_large_resumptions_are_answered_one_by_one(self) -> None:
        epoch = self.fill(1, 600)
        for _ in range(10):
            self.client.send(type="subscribe", chat_id=1, since={"epoch": epoch, "seq": 0})
        self.client.send(type="ping")
        self.assertEqual(self.answered(), 2)
        seconds = 0.0
        total = 2
        while total < 10:
            self.world.clock.advance(0.25)
            seconds += 0.25
            total += (more := self.answered())
            self.assertLessEqual(more, 4)
        self.assertGreaterEqual(seconds, 0.5)
        self.world.clock.pump([0.25] * 8)
        self.assertEqual(self.client.ask(type="ping"), {"type": "pong"})

    def test_those_that_turn_out_too_large_count_too(self) -> None:
        world = World(Limits(frames_per_second=0, replay=500))
        client = world.client()
        for n in range(600):
            world.publish(chat(1, 1), chat_payload(chat(1, 1), n))
        for _ in range(10):
            client.send(type="subscribe", chat_id=1, since={"epoch": world.broker._epoch, "seq": 0})
        self.assertEqual([frame["recovered"] for frame in client.take()], [False] * 2)

    def test_many_small_ones_need_not_wait(self) -> None:
        for n in range(300):
            epoch = self.fill(n, 3)
        for n in range(300):
            self.client.send(type="subscribe", chat_id=n, since={"epoch": epoch, "seq": 3 * n})
        self.assertEqual(self.answered(), 300)

    def test_who_has_not_taken_the_last_answer_gets_no_other(self) -> None:
        epoch = self.fill(1, 600)
        self.client.connection.queued = 1
        for _ in range(10):
            self.client.send(type="subscribe", chat_id=1, since={"epoch": epoch, "seq": 0})
        self.world.clock.pump([0.25] * 100)
        self.assertEqual(self.answered(), 2)
        self.client.connection.queued = 0
        self.world.clock.pump([0.25] * 2)
        self.assertGreater(self.answered(), 0)

    def test_nothing_is_left_of_one_that_rests_and_leaves(self) -> None:
        epoch = self.fill(1, 600)
        for _ in range(10):
            self.client.send(type="subscribe", chat_id=1, since={"epoch": epoch, "seq": 0})
        self.client.leave()
        self.world.clock.pump([0.25] * 8)
        self.assertEqual(self.answered(), 2)
        self.world.clock.advance(61)
        self.assertEqual(self.world.wheel._slots, {})

    def test_lists_of_users_count_too(self) -> None:
        for n in range(600):
            self.world.client(n + 10).send(type="subscribe", chat_id=5)
        for _ in range(10):
            self.client.send(type="presence", chat_id=5)
        self.assertEqual(len(self.client.take()), 2)
        self.world.clock.pump([0.25] * 40)
        self.assertEqual(len(self.client.take()), 8)
