"""The durable consumer, without NATS and with a moved clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.consumer import Consumer
from notify.brokers.jetstream.settings import JetStreamSettings


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
    """Keeps the answer to CONSUMER.CREATE back."""

    def __init__(self) -> None:
        self.made: Deferred[Any] = Deferred()
        self.calls: list[str] = []

    async def api(self, call: str, body: Any = None, timeout: float = 0) -> Any:
        self.calls.append(call)
        if not call.startswith("CONSUMER.CREATE"):
            return await succeed({})
        config = body["config"]
        await self.made
        return {"config": config}


class FakeTail:
    def doubt(self) -> None:
        pass


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
