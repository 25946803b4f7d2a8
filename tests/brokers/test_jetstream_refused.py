"""Messages that real servers never accept: only their caller gets an error, which says why."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.errors import TooLarge, Unavailable
from notify.testing import Recorder, chat_payload
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import NatsServer, api

TOPIC = chat(1, 10)


class Refusals(TestCase):
    timeout = 60

    async def broker(self, extra: str = "") -> JetStreamBroker:
        server = NatsServer(extra=extra).start()
        self.addCleanup(server.remove)
        await server.up()
        broker, recorder = make(server), Recorder()
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        return broker

    def publish(self, broker: JetStreamBroker, content: str) -> Deferred[Any]:
        return broker.publish(TOPIC, chat_payload(TOPIC, content=content))

    async def test_more_than_max_payload(self) -> None:
        broker = await self.broker("max_payload: 64KB")
        large, small = self.publish(broker, "x" * 70_000), self.publish(broker, "x")
        self.assertIn("65536", str(await self.assertFailure(large, TooLarge)))
        self.assertEqual((await small).seq, 1)
        # Exact to the last byte: a message that is let through does not end the connection.
        connection = broker._connection
        for length in range(65_536 - 400, 65_537):
            try:
                await self.publish(broker, "x" * length)
            except TooLarge:
                break
        else:
            self.fail("nothing was too large")
        self.assertEqual(connection.max_payload, 65_536)
        self.assertTrue(connection.connected)
        self.assertEqual(broker._metrics.broker_connects._value.get(), 1)

    async def test_more_than_the_streams_own_bound(self) -> None:
        broker = await self.broker()
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"max_msg_size": 1000})
        outcomes = await gatherResults(
            [self.assertFailure(self.publish(broker, "x" * 2000), TooLarge), self.publish(broker, "x")]
        )
        self.assertIn("max_msg_size of the stream MESSAGES", str(outcomes[0]))
        self.assertEqual(outcomes[1].seq, 1)

    async def test_a_sealed_stream(self) -> None:
        broker = await self.broker()
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"sealed": True})
        error = await self.assertFailure(self.publish(broker, "x"), Unavailable)
        self.assertIn("the stream MESSAGES is sealed", str(error))
        self.assertTrue(broker.status().ready)
