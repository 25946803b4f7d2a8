"""Faults that the JetStream broker notices and repairs by itself, one at a time; tests/faults does it under load."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from notify.brokers import jetstream
from notify.brokers.jetstream.health import Refused
from notify.brokers.jetstream.stream import StreamState
from notify.config import Duration
from notify.errors import HistoryLost, Unavailable
from notify.testing import chat_payload
from tests.brokers.test_jetstream_streams import TOPIC, ServerCase
from tests.support.natsd import until


class Healing(ServerCase):
    async def test_a_stream_that_was_deleted_is_made_anew_and_followers_are_told(self) -> None:
        for delivery in ("republish", "consumer"):
            broker, recorder = await self.broker(f"node-{delivery}", delivery=delivery)
            before = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
            await broker.follow(TOPIC)
            await broker._streams.api("STREAM.DELETE.MESSAGES")
            await until(lambda recorder=recorder: recorder.lost_topics == [TOPIC], 20)
            await until(lambda broker=broker: broker.status().ready, 20)
            await self.assertFailure(broker.replay(TOPIC, before, 10, 10**6), HistoryLost)
            position = (await broker.follow(TOPIC)).position
            self.assertNotEqual(position.epoch, before.epoch)
            after = await broker.publish(TOPIC, chat_payload(TOPIC, 2))
            await until(lambda recorder=recorder: recorder.messages, 10)
            self.assertEqual([m.position for m in recorder.messages], [after])
            await broker.stop()

    async def test_a_consumer_that_was_deleted_is_made_again_and_nothing_is_missed(self) -> None:
        broker, recorder = await self.broker(delivery="consumer")
        await broker.follow(TOPIC)
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        await recorder.wait(1)
        await broker._streams.api("CONSUMER.DELETE.MESSAGES.notify-node-1")
        for number in range(2, 7):
            await broker.publish(TOPIC, chat_payload(TOPIC, number))
        await recorder.wait(6)
        self.assertEqual([m.event.message_id for m in recorder.messages], [1, 2, 3, 4, 5, 6])
        await broker.publish(TOPIC, chat_payload(TOPIC, 7))
        await recorder.wait(7)
        self.assertEqual(recorder.lost_topics, [])

    async def test_what_is_to_come_first_is_waited_for_when_it_is_back_and_not_for_ever(self) -> None:
        broker, recorder = await self.broker()
        await broker.follow(TOPIC)
        asked: list[Deferred[None]] = []

        def first() -> Deferred[None]:
            asked.append(Deferred())
            return asked[-1]

        broker.after(first)
        publisher, _ = await self.broker("publisher")
        broker._connection.abandon("a test")
        await until(lambda: asked, 20)
        stored = await publisher.publish(TOPIC, chat_payload(TOPIC, 1))
        await publisher.replay(TOPIC, stored, 10, 10**6)
        self.assertEqual((recorder.messages, broker.status().ready), ([], False))
        asked[0].callback(None)
        await until(lambda: recorder.messages, 20)
        self.patch(jetstream, "_FIRST", 0.5)
        broker._connection.abandon("a test")
        await until(lambda: len(asked) == 2 and broker.status().ready, 20)

    async def test_a_server_that_does_not_store_is_left(self) -> None:
        broker, _ = await self.broker(canary_interval=Duration(0.1))
        sing, failures = broker._health.sing, [1, 2]

        async def hoarse() -> None:
            if failures:
                failures.pop()
                raise Unavailable("no answer")
            await sing()

        self.patch(broker._health, "sing", hoarse)
        connects = broker._metrics.broker_connects._value.get
        await until(lambda: connects() == 2 and broker.status().ready, 10)

    async def test_a_server_that_says_why_it_does_not_store_is_waited_for(self) -> None:
        broker, _ = await self.broker(canary_interval=Duration(0.1))
        sing, full = broker._health.sing, [True]

        async def hoarse() -> None:
            if full:
                raise Refused("NATS cannot store messages: no room")
            await sing()

        self.patch(broker._health, "sing", hoarse)
        await until(lambda: not broker.status().ready and "no room" in broker.status().detail, 10)
        full.clear()
        await until(lambda: broker.status().ready, 10)

    async def test_a_leader_that_is_behind_for_some_seconds_is_no_other_history(self) -> None:
        self.patch(jetstream, "_SURE", 0.05)
        broker, recorder = await self.broker()
        await broker.follow(TOPIC)
        for number in (1, 2):
            await broker.publish(TOPIC, chat_payload(TOPIC, number))
        await recorder.wait(2)
        epoch, look, stale = broker._reader.epoch, broker._streams.info, [1, 2, 3]

        async def behind() -> StreamState:
            state = await look()
            if not stale:
                return state
            stale.pop()
            return replace(state, last_seq=1, stamp=0, copies=3)

        self.patch(broker._streams, "info", behind)
        broker._set_up("a look")
        await until(lambda: broker.status().ready and not stale, 10)
        self.assertEqual((broker._reader.epoch, recorder.lost_topics), (epoch, []))

    async def test_what_a_server_says_that_knows_of_no_leader_is_not_how_the_stream_is(self) -> None:
        # nats-server 2.15.1 after it could not write to its disk: it answers beside the new leader, and has less.
        broker, _ = await self.broker(check_interval=Duration(60))
        await until(lambda: not broker._health.first, 10)
        ask, leaders = broker._streams.api, ["n2", "", ""]

        async def told(call: str, body: Any = None) -> Any:
            return await ask(call, body) | {"cluster": {"leader": leaders.pop() if leaders else ""}}

        self.patch(broker._streams, "api", told)
        state = await broker._streams.info()
        self.assertEqual((state.last_seq, leaders), (0, []))
        error = await self.assertFailure(Deferred.fromCoroutine(broker._streams.info()), Unavailable)
        self.assertIn("no leader", str(error))

    async def test_what_never_arrived_is_found_by_comparing(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(0.2))
        await broker.follow(TOPIC)
        [subscription] = broker._source._subscriptions.values()  # type: ignore[union-attr]
        broker._connection.unsubscribe(subscription)
        for number in (1, 2, 3):
            await broker.publish(TOPIC, chat_payload(TOPIC, number))
        await recorder.wait(3)
        self.assertEqual([m.event.message_id for m in recorder.messages], [1, 2, 3])
        self.assertEqual(broker._metrics.broker_filled._value.get(), 3)

    async def test_messages_that_nats_py_had_to_drop_are_looked_for_at_once(self) -> None:
        broker, recorder = await self.broker(check_interval=Duration(60))
        await broker.follow(TOPIC)
        await until(lambda: not broker._health.first, 10)
        [subscription] = broker._source._subscriptions.values()  # type: ignore[union-attr]
        broker._connection.unsubscribe(subscription)
        await broker.publish(TOPIC, chat_payload(TOPIC, 1))
        broker._connection.hooks.dropped()
        await recorder.wait(1)
        self.assertEqual(recorder.messages[0].event.message_id, 1)
