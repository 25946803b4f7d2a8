"""Authentication: tokens that are accepted, that are refused, that expire, and that are refreshed."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from notify.config import Duration, Limits
from notify.core import access
from notify.core.revocations import Revocation
from notify.errors import Unavailable
from notify.identity import Identity
from notify.interfaces import IPlaces
from notify.testing import chat_payload, notification_payload
from notify.topics import Topic, chat, user
from tests.support.world import NOW, Client, World


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
        [result] = World(Limits(reauthenticate=Duration(0))).client().result
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

    def test_too_many_connections_of_a_user_close_with_1013(self) -> None:
        world = World(Limits(max_connections_per_user=2))
        self.assertEqual([world.client(user_id=1).closed for _ in range(2)], [None, None])
        self.assertEqual(world.client(user_id=1).closed[0], 1013)
        self.assertIsNone(world.client(user_id=2).closed)
        self.assertEqual(world.sample("notify_connections"), 3)

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

    def test_refreshes_at_once_wait_for_each_other_and_what_is_behind_them_waits_too(self) -> None:
        """Otherwise a crowd with one good token makes the server do nothing but check signatures."""
        world = World()
        client = world.client()
        world.authenticator.tokens["new"] = Identity(1, 1)
        for id in range(7):
            client.send(type="refresh", token="new", id=id)
        client.send(type="ping", id="behind")
        self.assertEqual([frame["id"] for frame in client.take()], [0, 1])
        world.clock.pump([0.1] * 5)
        self.assertLessEqual(len(client.take()), 3)
        world.clock.pump([0.1] * 20)
        self.assertEqual([frame["id"] for frame in client.take()][-2:], [6, "behind"])

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


class Elsewhere(SynchronousTestCase):
    """A user has connections in other processes: the registry has to be asked whether there is room for one more."""

    def setUp(self) -> None:
        self.world = World(Limits(max_connections_per_user=1))
        self.asked: list[Deferred[bool]] = []
        registry: Any = self.world.registry
        alsoProvides(registry, IPlaces)
        registry.room = self.room
        self.world.hub.places = registry

    def room(self, topic: Topic, most: int) -> Deferred[bool]:
        self.assertEqual((topic, most), (user(1, 1), 1))
        self.asked.append(Deferred())
        return self.asked[-1]

    def client(self, issued_at: float | None = NOW) -> Client:
        self.world.authenticator.tokens["t"] = Identity(1, 1, None, None, (), issued_at)
        client = self.world.connect()
        client.send(type="auth", token="t")
        self.assertEqual((client.take(), len(self.asked)), ([], 1))
        return client

    def revoke(self) -> int:
        return access.revoke(self.world.hub, Revocation(1, 1, NOW + 1, NOW + 60))

    def test_where_there_is_one_it_is_taken(self) -> None:
        client = self.client()
        self.asked[0].callback(True)
        self.assertTrue(client.take()[0]["success"])
        self.assertIn(client.connection, self.world.registry.members(user(1, 1)))
        self.assertEqual(self.world.hub.waiting, {})

    def test_where_there_is_none_it_is_sent_away(self) -> None:
        client = self.client()
        self.asked[0].callback(False)
        self.assertEqual((client.closed[0], self.world.hub.waiting), (1013, {}))
        self.assertEqual(self.world.sample("notify_auth_total", result="full"), 1)

    def test_where_nobody_can_tell_it_comes_back(self) -> None:
        client = self.client()
        self.asked[0].errback(Unavailable("gone"))
        self.assertEqual((client.closed[0], self.world.hub.waiting), (1013, {}))
        self.assertEqual(self.world.sample("notify_auth_total", result="unavailable"), 1)

    def test_who_leaves_meanwhile_takes_none(self) -> None:
        client = self.client()
        client.leave()
        self.asked[0].callback(True)
        self.assertEqual(list(self.world.registry.members(user(1, 1))), [])
        self.assertEqual((client.take(), self.world.hub.waiting), ([], {}))

    def test_who_is_revoked_meanwhile_does_not_get_in(self) -> None:
        client = self.client()
        self.assertEqual(self.revoke(), 0)
        self.asked[0].callback(True)
        # The registry is asked again; the client is told about the revocation after that answer.
        self.asked[1].callback(True)
        self.assertEqual((client.closed, client.take()), ((4002, "token revoked"), []))
        self.assertEqual(list(self.world.registry.members(user(1, 1))), [])

    def test_a_token_that_was_revoked_before_takes_no_place_either(self) -> None:
        self.revoke()
        client = self.client(NOW - 10)
        self.asked[0].callback(True)
        self.assertEqual(client.closed, (4002, "token revoked"))

    def test_who_is_disconnected_meanwhile_is_asked_about_anew(self) -> None:
        client = self.client()
        access.disconnect(self.world.hub, 1, 1)
        del self.world.authenticator.tokens["t"]
        self.asked[0].callback(True)
        self.assertEqual((client.closed[0], len(self.asked)), (4500, 1))

    def test_whose_chats_change_meanwhile_is_asked_about_anew(self) -> None:
        client = self.client()
        access.unsubscribe(self.world.hub, 1, 1, 5)
        self.world.authenticator.tokens["t"] = Identity(1, 1, None, frozenset((6,)), (), NOW)
        self.asked[0].callback(True)
        self.asked[1].callback(True)
        self.assertTrue(client.take()[0]["success"])
        self.assertEqual(client.connection.identity.chats, frozenset((6,)))
