"""The session: every frame of the protocol page, its answers, its faults and its closes, without a socket."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits
from notify.identity import Identity
from notify.testing import chat_payload, notification_payload
from notify.topics import chat, user
from tests.support import NOW, World


class Original(SynchronousTestCase):
    """A client that knows the original messages only."""

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


class Auth(SynchronousTestCase):
    def test_success_tells_connection_expiry_and_ping_interval(self) -> None:
        client = World().client(expires_in=60, id="a")
        [result] = client.result
        self.assertEqual(result["connection_id"], client.connection.id)
        self.assertEqual(
            (result["expires_at"], result["ping_interval"], result["id"]), (int(NOW) + 60, 25, "a")
        )
        self.assertNotIn("recovered", result)

    def test_a_token_without_expiry_says_null(self) -> None:
        [result] = World().client().result
        self.assertIsNone(result["expires_at"])

    def test_a_bad_token_is_refused_and_closes_with_4500(self) -> None:
        world = World()
        client = world.connect()
        self.assertEqual(
            client.ask(type="auth", token="bad", id=1),
            {"type": "auth_result", "success": False, "user_id": None, "id": 1},
        )
        self.assertEqual(client.closed, (4500, "authentication failed"))
        self.assertEqual(world.sample("notify_auth_total", result="refused"), 1)

    def test_the_log_names_the_address_of_who_is_refused_and_not_the_token(self) -> None:
        with capturedLogs() as events:
            World().connect().send(type="auth", token="bad-secret")
        [line] = [text for text in map(formatEvent, events) if text and "is refused" in text]
        self.assertIn(" from 127.0.0.1 is refused: ", line)
        self.assertNotIn("bad-secret", line)

    def test_a_token_that_has_expired_is_refused(self) -> None:
        client = World().client(expires_in=0)
        self.assertFalse(client.result[0]["success"])
        self.assertEqual(client.closed[0], 4500)

    def test_nobody_authenticates_twice(self) -> None:
        client = World().client()
        self.assertEqual(client.ask(type="auth", token="x", id=2)["code"], "already_authenticated")
        self.assertIsNone(client.closed)

    def test_who_does_not_authenticate_in_time_is_closed_with_4501(self) -> None:
        world = World()
        client = world.connect()
        world.clock.advance(4.9)
        client.send(type="ping")
        self.assertIsNone(client.closed)
        world.clock.advance(0.6)
        self.assertEqual(client.closed[0], 4501)

    def test_an_authenticator_that_does_not_answer_is_not_the_clients_fault(self) -> None:
        world = World()
        world.authenticator.held = []
        client = world.client()
        world.clock.advance(5.5)
        self.assertEqual(client.closed[0], 1013)
        world.authenticator.release()
        self.assertEqual(client.take(), [])
        self.assertEqual(world.registry._members, {})

    def test_while_it_is_away_the_client_is_told_to_come_back(self) -> None:
        for away in ("authenticator", "broker"):
            world = World()
            getattr(world, away).away = True
            client = world.client(id=5)
            [error] = client.result
            self.assertEqual((error["code"], error["retry"], error["id"]), ("unavailable", True, 5))
            self.assertEqual(client.closed[0], 1013)
            self.assertIn("retry_after_ms", client.closed[1])
            client.leave()
            self.assertEqual(world.registry._members, {})

    def test_frames_behind_auth_wait_for_its_result(self) -> None:
        world = World()
        world.authenticator.held = []
        client = world.client()
        client.send(type="subscribe", chat_id=1, id=1)
        client.send(type="ping", id=2)
        self.assertEqual(client.take(), [])
        world.authenticator.release()
        self.assertEqual([f["type"] for f in client.take()], ["auth_result", "subscribed", "pong"])

    def test_notifications_come_after_auth_and_resume_from_since(self) -> None:
        world = World()
        topic = user(1, 7)
        first = world.client(user_id=7)
        world.publish(topic, notification_payload(topic, 1, data={"x": [1]}))
        world.turn()
        [one] = first.take()
        self.assertEqual((one["type"], one["user_id"], one["kind"]), ("notification", 7, "mention"))
        self.assertEqual((one["data"], one["seq"], one["prev"]), ({"x": [1]}, 1, 0))
        first.leave()
        world.publish(topic, notification_payload(topic, 2))
        again = world.client(user_id=7, since={"epoch": one["epoch"], "seq": one["seq"]})
        result, missed = again.result
        self.assertEqual((result["recovered"], result["seq"]), (True, 2))
        self.assertEqual((missed["notification_id"], missed["prev"]), (2, 1))

    def test_an_unknown_since_tells_the_newest_position(self) -> None:
        world = World()
        world.client(user_id=7)
        world.publish(user(1, 7), notification_payload(user(1, 7)))
        [result] = world.client(user_id=7, since={"epoch": "", "seq": 0}).result
        self.assertEqual((result["recovered"], result["seq"]), (False, 1))

    def test_too_many_connections_of_a_user_or_altogether_close_with_1013(self) -> None:
        world = World(Limits(max_connections_per_user=2, max_connections=4))
        self.assertEqual([world.client(user_id=1).closed for _ in range(2)], [None, None])
        self.assertEqual(world.client(user_id=1).closed[0], 1013)
        others = [world.client(user_id=user_id) for user_id in (2, 3, 4)]
        self.assertEqual([other.closed and other.closed[0] for other in others], [None, None, 1013])
        self.assertEqual(world.sample("notify_connections"), 4)

    def test_who_comes_while_too_many_are_on_their_way_in_is_told_when_to_come_back(self) -> None:
        world = World(Limits(max_arriving=2))
        silent = [world.connect() for _ in range(2)]
        refused = world.connect()
        code, reason = refused.connection.closed or (0, "")
        self.assertEqual(code, 1013)
        self.assertGreaterEqual(json.loads(reason)["retry_after_ms"], 500)
        refused.session.closed()
        silent[0].session.closed()
        admitted = world.client(user_id=1)
        self.assertIsNone(admitted.closed)
        another = world.connect()
        self.assertIsNone(another.closed)
        for client in (silent[1], another, admitted):
            client.session.closed()
        self.assertEqual(world.hub.arriving, 0)


class Expiry(SynchronousTestCase):
    def test_closes_a_live_connection_with_4002_within_a_second(self) -> None:
        world = World()
        client = world.client(expires_in=60)
        world.clock.advance(59.9)
        self.assertIsNone(client.closed)
        world.clock.advance(1)
        self.assertEqual(client.closed, (4002, "token expired"))

    def test_refresh_extends_it(self) -> None:
        world = World()
        client = world.client(expires_in=60)
        world.authenticator.tokens["new"] = Identity(1, 1, NOW + 120)
        self.assertEqual(
            client.ask(type="refresh", token="new", id="r"),
            {"type": "ok", "id": "r", "expires_at": int(NOW) + 120},
        )
        world.clock.advance(119)
        self.assertIsNone(client.closed)
        world.clock.advance(2)
        self.assertEqual(client.closed[0], 4002)

    def test_a_bad_refresh_or_one_for_another_user_closes_with_4500(self) -> None:
        for identity in (None, Identity(2, 1), Identity(1, 2), Identity(1, 1, NOW - 1)):
            world = World()
            client = world.client()
            if identity is not None:
                world.authenticator.tokens["new"] = identity
            client.send(type="refresh", token="new", id="r")
            self.assertEqual((client.take(), client.closed[0]), ([], 4500))

    def test_a_refresh_that_cannot_be_checked_changes_nothing(self) -> None:
        world = World()
        client = world.client(expires_in=60)
        world.authenticator.away = True
        self.assertEqual(client.ask(type="refresh", token="new", id=1)["code"], "unavailable")
        self.assertIsNone(client.closed)

    def test_a_refresh_that_names_fewer_chats_ends_the_others(self) -> None:
        world = World()
        client = world.client()
        for chat_id in (1, 2):
            client.send(type="subscribe", chat_id=chat_id)
        world.authenticator.tokens["new"] = Identity(1, 1, None, frozenset([1]))
        client.send(type="refresh", token="new")
        [error] = client.take()
        self.assertEqual((error["code"], error["chat_id"]), ("forbidden", 2))
        for chat_id in (1, 2):
            world.publish(chat(1, chat_id), chat_payload(chat(1, chat_id)))
        world.turn()
        self.assertEqual([f["chat_id"] for f in client.take()], [1])
        self.assertEqual(world.sample("notify_subscriptions"), 1)


class Subscriptions(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Limits(max_subscriptions=2))
        self.client = self.world.client()

    def publish(self, topic: Any) -> None:
        self.world.publish(topic, chat_payload(topic))
        self.world.turn()

    def test_an_id_is_answered_with_the_newest_position(self) -> None:
        self.publish(chat(1, 10))
        answer = self.client.ask(type="subscribe", chat_id=10, id=3)
        epoch = answer.pop("epoch")
        self.assertEqual(answer, {"type": "subscribed", "chat_id": 10, "seq": 1, "recovered": False, "id": 3})
        self.client.send(type="unsubscribe", chat_id=10, id=4)
        self.publish(chat(1, 10))
        self.assertEqual(self.client.take(), [{"type": "ok", "id": 4}])
        self.client.send(type="subscribe", chat_id=10, since={"epoch": epoch, "seq": 1})
        subscribed, missed = self.client.take()
        self.assertEqual(
            (subscribed["recovered"], subscribed["seq"], missed["seq"], missed["prev"]), (True, 2, 2, 1)
        )
        self.assertNotIn("id", subscribed)

    def test_other_workspaces_are_never_seen(self) -> None:
        self.client.send(type="subscribe", chat_id=10)
        self.publish(chat(2, 10))
        self.assertEqual(self.client.take(), [])
        self.assertEqual({topic.workspace_id for topic in self.world.authenticator.asked}, {1})

    def test_what_may_not_be_seen_is_forbidden(self) -> None:
        self.world.authenticator.forbidden = {10}
        self.assertEqual(self.client.ask(type="subscribe", chat_id=10, id=1)["code"], "forbidden")
        self.assertEqual(self.client.ask(type="presence", chat_id=10, id=1)["code"], "forbidden")
        self.publish(chat(1, 10))
        self.assertEqual(self.client.take(), [])

    def test_more_than_the_limit_are_refused(self) -> None:
        for chat_id in (1, 2, 1):
            self.assertEqual(self.client.ask(type="subscribe", chat_id=chat_id, id=0)["type"], "subscribed")
        self.assertEqual(self.client.ask(type="subscribe", chat_id=3, id=0)["code"], "too_many_subscriptions")
        self.client.send(type="unsubscribe", chat_id=1)
        self.assertEqual(self.client.ask(type="subscribe", chat_id=3, id=0)["type"], "subscribed")
        self.assertEqual(self.world.sample("notify_subscriptions"), 2)

    def test_while_the_broker_is_away_the_client_is_told_to_retry(self) -> None:
        self.world.broker.away = True
        error = self.client.ask(type="subscribe", chat_id=1, id=1)
        self.assertEqual((error["code"], error["retry"], error["id"]), ("unavailable", True, 1))
        self.world.broker.away = False
        self.assertEqual(self.client.ask(type="subscribe", chat_id=1, id=2)["type"], "subscribed")
        self.assertIsNone(self.client.closed)

    def test_an_error_ends_a_subscription_that_was_on(self) -> None:
        for fault in ("away", "forbidden"):
            self.client.send(type="subscribe", chat_id=1)
            if fault == "away":
                self.world.authenticator.away = True
            else:
                self.world.authenticator.forbidden = {1}
            self.assertEqual(self.client.ask(type="subscribe", chat_id=1, id=1)["type"], "error")
            self.publish(chat(1, 1))
            self.assertEqual(self.client.take(), [])
            self.assertEqual(self.world.sample("notify_subscriptions"), 0)
            self.world.authenticator.away, self.world.authenticator.forbidden = False, set()

    def test_a_plugin_that_fails_is_an_internal_error_that_tells_nothing(self) -> None:
        def authorize(identity: Any, topic: Any) -> Any:
            from twisted.internet.defer import fail

            return fail(RuntimeError("secret detail"))

        self.world.authenticator.authorize = authorize  # type: ignore[method-assign]
        error = self.client.ask(type="subscribe", chat_id=1, id=1)
        self.assertEqual(error["code"], "internal")
        self.assertNotIn("secret", str(error))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_presence_lists_who_is_there(self) -> None:
        other = self.world.client(user_id=2)
        for client in (self.client, other):
            client.send(type="subscribe", chat_id=10)
        self.assertEqual(
            self.client.ask(type="presence", chat_id=10, id=9),
            {
                "type": "presence",
                "chat_id": 10,
                "users": [{"user_id": 1, "connections": 1}, {"user_id": 2, "connections": 1}],
                "id": 9,
            },
        )

    def test_watching_tells_of_each_change_until_unsubscribed(self) -> None:
        self.client.send(type="subscribe", chat_id=10, watch_presence=True)
        self.world.clock.advance(1)
        [first] = self.client.take()
        self.assertEqual([u["user_id"] for u in first["users"]], [1])
        other = self.world.client(user_id=2)
        other.send(type="subscribe", chat_id=10)
        self.world.clock.advance(1)
        [second] = self.client.take()
        self.assertEqual([u["user_id"] for u in second["users"]], [1, 2])
        other.leave()
        self.world.clock.advance(1)
        [third] = self.client.take()
        self.assertEqual([u["user_id"] for u in third["users"]], [1])
        self.client.send(type="unsubscribe", chat_id=10)
        other = self.world.client(user_id=2)
        other.send(type="subscribe", chat_id=10)
        self.world.clock.advance(1)
        self.assertEqual(self.client.take(), [])

    def test_who_leaves_leaves_nothing_behind(self) -> None:
        self.client.send(type="subscribe", chat_id=10, watch_presence=True)
        self.client.leave()
        self.client.leave()
        self.world.clock.advance(60)
        self.assertEqual((self.world.registry._members, self.world.registry._topics), ({}, {}))
        self.assertEqual(self.world.hub.presence._watchers, {})
        self.assertEqual(self.world.hub.sessions, {})
        self.assertEqual(self.world.broker._followed, set())
        for gauge in ("notify_connections", "notify_subscriptions", "notify_topics"):
            self.assertEqual(self.world.sample(gauge), 0)

    def test_who_leaves_while_a_question_is_open_is_not_subscribed(self) -> None:
        self.world.authenticator.held = []
        self.client.send(type="subscribe", chat_id=10)
        self.client.leave()
        self.world.authenticator.release()
        self.assertEqual(self.world.registry._members, {})


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
        self.world.hub.limits = Limits(max_subscriptions=1, auth_timeout=Duration(1))
        self.client.send(type="subscribe", chat_id=1)
        self.assertEqual(self.client.ask(type="subscribe", chat_id=2, id=1)["code"], "too_many_subscriptions")


class Amplification(SynchronousTestCase):
    """A frame of a hundred bytes may ask for a megabyte: not again and again at once."""

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
        self.assertEqual(self.world.wheel._slots, {})

    def test_lists_of_users_count_too(self) -> None:
        for n in range(600):
            self.world.client(n + 10).send(type="subscribe", chat_id=5)
        for _ in range(10):
            self.client.send(type="presence", chat_id=5)
        self.assertEqual(len(self.client.take()), 2)
        self.world.clock.pump([0.25] * 40)
        self.assertEqual(len(self.client.take()), 8)
