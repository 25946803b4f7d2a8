"""Chats: subscribing, resuming, leaving, and who is there."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.testing import chat_payload
from notify.topics import chat
from tests.support.world import World


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
        self.world.clock.advance(61)
        self.assertEqual((self.world.registry._members, self.world.registry._topics), ({}, {}))
        self.assertEqual(self.world.hub.presence._watchers, {})
        self.assertEqual(self.world.hub.connections, {})
        self.assertEqual(self.world.broker._followed, set())
        for gauge in ("notify_connections", "notify_subscriptions", "notify_topics"):
            self.assertEqual(self.world.sample(gauge), 0)

    def test_who_leaves_while_a_question_is_open_is_not_subscribed(self) -> None:
        self.world.authenticator.held = []
        self.client.send(type="subscribe", chat_id=10)
        self.client.leave()
        self.world.authenticator.release()
        self.assertEqual(self.world.registry._members, {})
