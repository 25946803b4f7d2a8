"""Streams, dead letters and readiness of the JetStream broker, against a real server."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import refuse_batches
from notify.config import Duration, Size
from notify.errors import HistoryLost, StartError, Unavailable, Unsupported
from notify.messages import Draft, Position
from notify.testing import Recorder, chat_payload, event_payload
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import NatsServer, pause, until

TOPIC = chat(1, 10)


class ServerCase(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        self.server = NatsServer().start()
        self.addCleanup(self.server.remove)
        await self.server.up()

    async def broker(self, node: str = "node-1", **settings: Any) -> tuple[JetStreamBroker, Recorder]:
        broker, recorder = make(self.server, node, **settings), Recorder()
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        return broker, recorder

    async def refused(self, **settings: Any) -> str:
        broker = make(self.server, **settings)
        self.addCleanup(broker.stop)
        error = await self.assertFailure(broker.start(lambda m: None, lambda t: None), StartError)
        self.assertFalse(broker.status().ready)
        return str(error)

    async def config(self, broker: JetStreamBroker, name: str = "MESSAGES") -> dict[str, Any]:
        answer = await broker._streams.api(f"STREAM.INFO.{name}")
        return dict(answer["config"])


class Streams(ServerCase):
    async def test_they_are_made_as_the_configuration_says(self) -> None:
        broker, _ = await self.broker(
            max_age=Duration(3600), max_bytes=Size(10**6), duplicate_window=Duration(60), max_messages=500
        )
        config = await self.config(broker)
        self.assertEqual(
            sorted(config["subjects"]),
            ["workspace.*.chat.*.messages", "workspace.*.user.*.notifications"],
        )
        expected = {
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": 3600 * 10**9,
            "max_bytes": 10**6,
            "max_msgs": 500,
            "num_replicas": 1,
            "duplicate_window": 60 * 10**9,
            "allow_direct": True,
        }
        self.assertEqual({key: config[key] for key in expected}, expected)
        self.assertRegex(config["republish"]["dest"], r"^live\.[0-9a-f]{8}\.>$")
        self.assertEqual((await self.config(broker, "MESSAGES_DEAD"))["max_msgs_per_subject"], 1)

    async def test_dead_letters_may_be_kept_for_less_than_keys_are_remembered(self) -> None:
        """The server refuses a stream whose duplicate window is longer than its messages are kept."""
        broker, _ = await self.broker(dead_letter_age=Duration(60))
        config = await self.config(broker, "MESSAGES_DEAD")
        self.assertEqual((config["max_age"], config["duplicate_window"]), (60 * 10**9, 60 * 10**9))

    async def test_one_takes_batches_once_a_node_is_to_have_it_so_and_stays_so(self) -> None:
        first, _ = await self.broker(check_interval=Duration(0.2))
        self.assertFalse((await self.config(first)).get("allow_atomic"))
        two = [Draft(TOPIC, chat_payload(TOPIC, number)) for number in (1, 2)]
        await self.assertFailure(first.publish_all(two), Unsupported)
        version = first._connection.version
        try:
            refuse_batches(version)
        except StartError:  # one of the oldest servers that the tests run with
            self.assertIn(f"allow_atomic needs NATS 2.12.12, 2.14.3 or newer on every server, and this one is {version}",
                          await self.refused(node="node-2", allow_atomic=True))  # fmt: skip
            self.assertFalse((await self.config(first)).get("allow_atomic"))
            return
        second, _ = await self.broker("node-2", allow_atomic=True)
        self.assertTrue((await self.config(second))["allow_atomic"])
        self.assertEqual(len(await second.publish_all(two)), 2)
        await until(lambda: first._atomic._takes)  # it checks every check_interval
        self.assertEqual(len(await first.publish_all(two)), 2)
        await self.broker("node-3")
        self.assertTrue((await self.config(second))["allow_atomic"])

    async def test_one_of_an_operator_that_takes_no_batches_is_refused_where_it_is_to(self) -> None:
        await self.broker()
        self.assertIn(
            "allow_atomic is off", await self.refused(node="node-2", allow_atomic=True, manage_stream=False)
        )

    def test_servers_with_sound_batches(self) -> None:
        for good in ("2.12.12", "2.12.20", "2.14.3", "2.14.4-beta.1", "2.15.0", "3.0.0"):
            refuse_batches(good)
        for bad in ("", "nonsense", "2.11.14", "2.12.11", "2.13.0", "2.14.2"):
            error = self.assertRaises(StartError, refuse_batches, bad)
            self.assertIn(bad or "unknown version", str(error))

    async def test_they_are_brought_up_to_date_and_what_is_not_ours_stays(self) -> None:
        first, _ = await self.broker()
        before = await self.config(first)
        changed = before | {"subjects": [*before["subjects"], "theirs.>"], "description": "theirs"}
        await first._streams.api("STREAM.UPDATE.MESSAGES", changed)
        second, _ = await self.broker("node-2", max_age=Duration(3600))
        after = await self.config(second)
        self.assertEqual(after["max_age"], 3600 * 10**9)
        self.assertEqual((after["description"], after["republish"]), ("theirs", before["republish"]))
        self.assertIn("theirs.>", after["subjects"])
        self.assertEqual(first._reader.epoch, second._reader.epoch)

    async def test_what_the_server_cannot_do_ends_the_start(self) -> None:
        self.assertIn("replicas > 1 not supported", await self.refused(replicas=3))

    async def test_subjects_that_belong_to_another_stream_end_the_start(self) -> None:
        await self.broker(stream="OTHER", dead_letter_stream="OTHER_DEAD")
        self.assertIn("subjects overlap", await self.refused())

    async def test_an_operators_stream_is_checked_and_a_mismatch_is_named(self) -> None:
        self.assertIn("MESSAGES does not exist", await self.refused(manage_stream=False))
        maker, _ = await self.broker()
        good = await self.config(maker)
        other, _ = await self.broker("node-2", manage_stream=False, max_age=Duration(3600))
        self.assertEqual(await self.config(other), good)
        for change, named in (
            ({"subjects": ["workspace.*.chat.*.messages"]}, "subjects lack workspace.*.user.*.notifications"),
            ({"republish": None}, "republish does not send"),
            ({"allow_direct": False}, "allow_direct is off"),
            ({"duplicate_window": 10**9}, "duplicate_window is shorter"),
        ):
            await maker._streams.api("STREAM.UPDATE.MESSAGES", good | change)
            self.assertIn(named, await self.refused(manage_stream=False), named)
        await maker._streams.api("STREAM.UPDATE.MESSAGES", good | {"republish": None})
        await self.broker("node-3", manage_stream=False, delivery="consumer")

    def test_contradictions_are_found_before_anything_is_asked(self) -> None:
        for wrong, named in (
            ({"servers": ()}, "servers is empty"),
            (
                {"servers": ("nats://a:4222", "ws://u:secret@b")},
                "takes nats:// and tls:// addresses, not ws://",
            ),
            ({"servers": ("wss://a",)}, "takes nats:// and tls:// addresses, not wss://"),
            ({"servers": ("TLS://a",)}, "takes nats:// and tls:// addresses, not TLS://"),
            ({"publish_patience": Duration(300)}, "publish_patience"),
            ({"user": "a", "token": "b"}, "one way to log in"),
            ({"tls_cert": "x"}, "belong together"),
            ({"dead_letter_stream": "MESSAGES"}, "two different names"),
            ({"check_interval": Duration(0)}, "at least 50ms"),
        ):
            error = self.assertRaises(StartError, JetStreamSettings(**wrong).check)
            self.assertIn(named, str(error))


class Poisoned(ServerCase):
    async def test_it_reaches_nobody_and_is_kept_once_whoever_meets_it(self) -> None:
        one, at_one = await self.broker()
        two, at_two = await self.broker("node-2", delivery="consumer")
        start = (await one.follow(TOPIC)).position
        await two.follow(TOPIC)
        bad = [b"rubbish, and secret", chat_payload(chat(1, 11)), b""]
        await one.publish(TOPIC, chat_payload(TOPIC, 1))
        for payload in bad:
            await one._connection.request(TOPIC.subject, payload)
        await one.publish(TOPIC, chat_payload(TOPIC, 2))
        await gatherResults([at_one.wait(2), at_two.wait(2)])
        for recorder in (at_one, at_two):
            self.assertEqual([m.event.message_id for m in recorder.messages], [1, 2])
        replayed = await one.replay(TOPIC, start, 2, 10**6)
        self.assertEqual([m.event.message_id for m in replayed.messages], [1, 2])

        def results() -> list[float]:
            return [
                broker._metrics.dead_letters.labels(result)._value.get()
                for broker in (one, two)
                for result in ("kept", "known")
            ]

        await until(lambda: sum(results()) == 6, 10, "both have kept them or found them kept")
        self.assertEqual(results()[0] + results()[2], 3)
        self.assertEqual(one._metrics.poison._value.get(), 3)
        epoch = one._reader.epoch
        answer = await one._streams.api(
            "STREAM.MSG.GET.MESSAGES_DEAD", {"last_by_subj": f"dead.MESSAGES.{epoch}.2"}
        )
        fields = b64decode(answer["message"]["hdrs"]).decode()
        self.assertEqual(b64decode(answer["message"]["data"]), bad[0])
        self.assertIn(f"Notify-Subject: {TOPIC.subject}\r\n", fields)
        self.assertIn("Notify-Sequence: 2\r\n", fields)
        self.assertIn("Notify-Reason: payload is not a valid chat message", fields)
        self.assertNotIn("secret", fields)

    async def test_an_event_that_an_older_version_stored_with_more_levels_is_a_dead_letter_that_says_so(
        self,
    ) -> None:
        broker, _ = await self.broker()
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        deep: object = 1
        for _ in range(600):
            deep = [deep]
        payload = event_payload(TOPIC, 2, data=deep)
        await broker._connection.request(TOPIC.subject, payload)
        await broker.publish(TOPIC, chat_payload(TOPIC, 3))
        replayed = await broker.replay(TOPIC, Position(broker._reader.epoch, 0), 10, 10**6, True)
        # Whoever resumes gets the others.
        self.assertEqual([m.event.message_id for m in replayed.messages], [1, 3])
        kept = broker._metrics.dead_letters.labels("kept")._value.get
        await until(lambda: kept() == 1, 20, "it is kept")
        answer = await broker._streams.api(
            "STREAM.MSG.GET.MESSAGES_DEAD", {"last_by_subj": f"dead.MESSAGES.{broker._reader.epoch}.2"}
        )
        self.assertEqual(b64decode(answer["message"]["data"]), payload)
        self.assertIn(
            "Notify-Reason: the payload has more than 500 levels of nesting\r\n",
            b64decode(answer["message"]["hdrs"]).decode(),
        )

    async def test_what_is_never_acknowledged_is_given_up_and_kept(self) -> None:
        broker, recorder = await self.broker(delivery="consumer", ack_wait=Duration(0.3), max_deliver=2)
        publish = broker._connection.publish

        def without_acks(subject: str, *rest: Any) -> None:
            if not subject.startswith("$JS.ACK."):
                publish(subject, *rest)

        await broker.follow(TOPIC)
        self.patch(broker._connection, "publish", without_acks)
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await recorder.wait(1)
        kept = broker._metrics.dead_letters.labels("kept")._value.get
        await until(lambda: kept() == 1, 20, "the advisory leads to a dead letter")
        self.assertEqual(len(recorder.messages), 1)


class Readiness(ServerCase):
    async def test_while_the_server_is_away_it_says_so_and_afterwards_all_is_as_before(self) -> None:
        broker, recorder = await self.broker()
        position = (await broker.follow(TOPIC)).position
        self.server.kill()
        await until(lambda: not broker.status().ready, 10)
        self.assertIn("away", broker.status().detail)
        self.assertEqual(broker._metrics.broker_up._value.get(), 0)
        await self.assertFailure(broker.follow(chat(1, 11)), Unavailable)
        await self.assertFailure(broker.replay(TOPIC, position, 1, 10**6), Unavailable)
        await self.assertFailure(broker.publish(TOPIC, chat_payload(TOPIC)), Unavailable)
        await self.server.start().up()
        await until(lambda: broker.status().ready, 10)
        await broker.publish(TOPIC, chat_payload(TOPIC, 5))
        await recorder.wait(1)
        self.assertEqual((recorder.messages[0].event.message_id, recorder.lost_topics), (5, []))
        self.assertEqual(broker._metrics.broker_connects._value.get(), 2)

    async def test_starts_as_soon_as_there_is_a_server(self) -> None:
        self.server.kill()
        broker = make(self.server)
        self.addCleanup(broker.stop)
        started = broker.start(lambda message: None, lambda topic: None)
        await pause(0.3)
        self.assertNoResult(started)
        await self.server.start().up()
        await started
        self.assertTrue(broker.status().ready)

    async def test_a_purge_is_told_to_those_who_may_have_missed_something(self) -> None:
        broker, recorder = await self.broker()
        first = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await broker.follow(TOPIC)
        self.server.pause()
        self.server.resume()
        await broker._streams.api("STREAM.PURGE.MESSAGES")
        await broker.publish(TOPIC, chat_payload(TOPIC, 2))
        await recorder.wait(1)
        # The message is delivered, or the topic is reported as lost: never silently wrong.
        told = [m.event.message_id for m in recorder.messages] == [2] or recorder.lost_topics == [TOPIC]
        self.assertTrue(told)
        replay = broker.replay(TOPIC, Position(first.epoch, 0), 10, 10**6)
        await self.assertFailure(replay, HistoryLost)

    async def test_deleting_the_newest_message_of_a_followed_topic_takes_nothing_from_its_followers(
        self,
    ) -> None:
        broker, recorder = await self.broker()
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        second = await broker.publish(TOPIC, chat_payload(TOPIC, 2))
        await broker.publish(chat(1, 11), chat_payload(chat(1, 11), 1))
        await broker.follow(TOPIC)
        await broker._streams.api("STREAM.MSG.DELETE.MESSAGES", {"seq": second.seq})
        await broker.publish(TOPIC, chat_payload(TOPIC, 3))
        await until(lambda: recorder.messages or recorder.lost_topics)
        self.assertEqual(([m.event.message_id for m in recorder.messages], recorder.lost_topics), ([3], []))
        # The same holds if all messages of a topic are deleted, as when a chat is purged.
        await broker._streams.api("STREAM.PURGE.MESSAGES", {"filter": TOPIC.subject})
        await broker.publish(TOPIC, chat_payload(TOPIC, 4))
        await until(lambda: len(recorder.messages) > 1 or recorder.lost_topics)
        self.assertEqual(
            ([m.event.message_id for m in recorder.messages], recorder.lost_topics), ([3, 4], [])
        )

    async def test_thousands_of_follows_at_once_are_a_few_requests(self) -> None:
        broker, _ = await self.broker()
        sent: list[str] = []
        publish = broker._connection.publish

        def counted(subject: str, *rest: Any) -> None:
            sent.append(subject)
            publish(subject, *rest)

        self.patch(broker._connection, "publish", counted)
        positions = await gatherResults([broker.follow(chat(n % 7, n)) for n in range(3000)])
        self.assertEqual({p.position.seq for p in positions}, {0})
        # Three lookups; comparisons with the stream may happen at the same time.
        self.assertLess(sent.count("$JS.API.DIRECT.GET.MESSAGES"), 10)
