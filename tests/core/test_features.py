"""Features: what a client can ask for beyond what every client gets (docs/protocol.md, Features)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.testing import chat_payload, event_payload
from notify.topics import chat
from notify.wire.encodings import deflated, encoding, featured
from notify.wire.frames import FEATURES
from tests.support.world import World

ROOM = chat(1, 10)


class Granted(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def test_those_that_are_known_are_granted_and_others_are_ignored(self) -> None:
        [result] = self.world.client(features=["future", "events", "events", ""]).result
        self.assertEqual((result["success"], result["features"]), (True, ["events"]))

    def test_what_changes_nothing_that_is_sent_by_itself_costs_no_encoding_of_its_own(self) -> None:
        client = self.world.client(features=["history"])
        self.assertEqual(client.result[0]["features"], ["history"])
        both = self.world.client(features=["history", "events"])
        self.assertEqual(both.result[0]["features"], ["events", "history"])
        self.assertIs(client.connection.encoding, self.world.client().connection.encoding)
        self.assertIs(both.connection.encoding, self.world.client(features=["events"]).connection.encoding)

    def test_who_asks_for_none_sees_nothing_of_it(self) -> None:
        for asked in ({}, {"features": []}, {"features": None}):
            [result] = self.world.client(**asked).result
            self.assertNotIn("features", result)

    def test_a_list_that_is_none_or_too_long_is_invalid(self) -> None:
        for features in ("events", [1], ["x" * 65], ["x"] * 65, 1):
            client = self.world.connect()
            client.send(type="auth", token="t", features=features, id=1)
            [answer] = client.take()
            self.assertEqual((answer["code"], answer["id"]), ("invalid_message", 1), features)

    def test_events_are_sent_to_those_who_asked_live_and_replayed(self) -> None:
        with_events, without = self.world.client(1, features=["events"]), self.world.client(2)
        for client in (with_events, without):
            client.ask(type="subscribe", chat_id=10, id=1)
        self.world.publish(ROOM, chat_payload(ROOM, 1))
        self.world.publish(ROOM, event_payload(ROOM, 2, "edited", {"a": None}, refers_to=1))
        self.world.turn()
        message, event = with_events.take()
        self.assertEqual(without.take(), [message])
        self.assertEqual(
            event,
            {
                "type": "chat_event", "chat_id": 10, "message_id": 2, "sender_id": 1, "kind": "edited",
                "data": {"a": None}, "timestamp": 1_700_000_000, "epoch": message["epoch"], "seq": 2, "prev": 1,
                "refers_to": 1,
            },
        )  # fmt: skip
        since = {"epoch": message["epoch"], "seq": 0}
        for client, expected in ((with_events, [message, event]), (without, [message])):
            client.send(type="subscribe", chat_id=10, since=since)
            answer, *replayed = client.take()
            self.assertEqual((answer["recovered"], answer["seq"], replayed), (True, 2, expected))

    def test_an_event_that_refers_to_nothing_says_nothing_of_it(self) -> None:
        client = self.world.client(features=["events"])
        client.ask(type="subscribe", chat_id=10, id=1)
        self.world.publish(ROOM, event_payload(ROOM))
        self.world.publish(ROOM, event_payload(ROOM, refers_to=None))
        self.world.turn()
        for event in client.take():
            self.assertNotIn("refers_to", event)


class Encodings(SynchronousTestCase):
    def test_one_object_serves_all_that_negotiated_alike(self) -> None:
        for name in ("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf"):
            plain = encoding(name)
            for one in (plain, deflated(plain, 15, 6, 100)):
                self.assertIs(featured(one, frozenset()), one)
                made = featured(one, FEATURES)
                self.assertIs(featured(one, FEATURES), made)
                self.assertIsNot(made, one)
                self.assertEqual((one.events, made.events, made.features), (False, True, FEATURES))
                self.assertEqual((made.subprotocol, made.binary), (one.subprotocol, one.binary))
