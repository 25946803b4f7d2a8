"""The durable consumer, without NATS and with a fake clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.consumer import Consumer
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import Mark
from notify.brokers.jetstream.tail import State, Tail
from notify.observe.metrics import Metrics
from notify.topics import chat


class FakeConnection:
    connected = True

    def subscribe(self, *arguments: Any) -> object:
        return object()

    def unsubscribe(self, subscription: object) -> None:
        pass

    def inbox(self) -> str:
        return "inbox"

    def publish(self, *arguments: Any) -> None:
        pass


class FakeStreams:
    """Holds back the answer to CONSUMER.CREATE."""

    def __init__(self) -> None:
        self.made: Deferred[Any] = Deferred()
        self.calls: list[str] = []
        self.delivered = 0

    async def api(self, call: str, body: Any = None, timeout: float = 0) -> Any:
        self.calls.append(call)
        if not call.startswith("CONSUMER.CREATE"):
            return await succeed({})
        config = body["config"]
        await self.made
        return {"config": config, "delivered": {"consumer_seq": self.delivered}}


class FakeTail:
    """Counts the calls of ``doubt``."""

    def __init__(self) -> None:
        self.doubts = self.highest = 0
        self.states: dict[bytes, object] = {}

    def doubt(self) -> None:
        self.doubts += 1


class Stopping(SynchronousTestCase):
    def test_told_to_stop_while_it_is_made_it_leaves_no_watch(self) -> None:
        clock, streams = Clock(), FakeStreams()
        made: Any = (
            JetStreamSettings(),
            FakeConnection(),
            streams,
            FakeTail(),
            clock,
            "node",
            lambda *_: None,
        )
        consumer = Consumer(*made)
        ready = Deferred.fromCoroutine(consumer.ready())
        self.successResultOf(Deferred.fromCoroutine(consumer.stop()))
        streams.made.callback(None)
        self.successResultOf(ready)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_until_then_it_watches(self) -> None:
        clock, streams = Clock(), FakeStreams()
        made: Any = (
            JetStreamSettings(),
            FakeConnection(),
            streams,
            FakeTail(),
            clock,
            "node",
            lambda *_: None,
        )
        consumer = Consumer(*made)
        streams.made.callback(None)
        self.successResultOf(Deferred.fromCoroutine(consumer.ready()))
        self.assertEqual(len(clock.getDelayedCalls()), 1)
        self.successResultOf(Deferred.fromCoroutine(consumer.stop()))
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual(streams.calls[-1], "CONSUMER.DELETE.MESSAGES.notify-node")


class Missing(SynchronousTestCase):
    """Deliveries are numbered from the consumer's beginning: a delivery without the next number shows a loss."""

    def deliveries(self, already: int, *numbers: int, stored: tuple[int, ...] = ()) -> int:
        """How often a consumer doubts when deliveries with these numbers come after ``already`` earlier ones.

        ``stored``: the messages' numbers in the stream, by default the same as those of the deliveries.
        """
        clock, streams, tail = Clock(), FakeStreams(), FakeTail()
        streams.delivered = already
        made: Any = (JetStreamSettings(), FakeConnection(), streams, tail, clock, "node", lambda *_: None)
        consumer = Consumer(*made)
        streams.made.callback(None)
        self.successResultOf(Deferred.fromCoroutine(consumer.ready()))
        tail.doubts = 0
        for seq, number in zip(stored or numbers, numbers, strict=True):
            consumer._arrived(b"s", f"$JS.ACK.MESSAGES.notify-node.1.{seq}.{number}.0.0", b"", b"")
        self.successResultOf(Deferred.fromCoroutine(consumer.stop()))
        return tail.doubts

    def test_the_first_delivery_of_a_new_consumer_has_number_one(self) -> None:
        self.assertEqual(self.deliveries(0, 1, 2, 3), 0)
        self.assertEqual(self.deliveries(0, 2, 3), 1)

    def test_one_that_was_there_goes_on_behind_what_it_delivered(self) -> None:
        self.assertEqual(self.deliveries(40, 41, 42), 0)
        self.assertEqual(self.deliveries(40, 42), 1)
        self.assertEqual(self.deliveries(40, 41, 43, 44), 1)

    def test_what_was_removed_before_its_turn_is_missed_without_a_number(self) -> None:
        self.assertEqual(self.deliveries(0, 1, 2, 3, stored=(70, 71, 72)), 0)
        self.assertEqual(self.deliveries(0, 1, 2, 3, stored=(70, 73, 74)), 1)
        # A message that is delivered again does not mean that one is missing.
        self.assertEqual(self.deliveries(0, 1, 2, 3, 4, stored=(70, 71, 70, 72)), 0)


class Stamps(SynchronousTestCase):
    def test_when_a_message_was_stored_is_not_its_publishers_to_say(self) -> None:
        forged = b"NATS/1.0\r\nNats-Time-Stamp: 2020-01-01T00:00:00Z\r\n\r\n"
        unused: Any = None
        for where in ("MESSAGES", "hub.account.MESSAGES"):
            tail = Tail(unused, Clock(), Metrics(), unused, unused)
            state = State(chat(1, 10))
            state.busy = False
            tail.states[b"s"] = state
            made: Any = (JetStreamSettings(), FakeConnection(), None, tail, Clock(), "node", unused)
            Consumer(*made)._arrived(b"s", f"$JS.ACK.{where}.notify-node.1.7.7.1234567890.0", b"", forged)
            self.assertEqual(tail.marks.all()[0], Mark(7, 1234567890))
