"""Messages that real servers never accept: only their caller gets an error, which says why."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.config import Duration
from notify.errors import TooLarge, Unavailable
from notify.testing import Recorder, chat_payload
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import NatsServer, api, until

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


#: a user that may do everything except receive what a test denies
USERS = """
authorization {{ users: [
  {{ user: notify, password: secret-of-notify, permissions: {{ publish: ">", subscribe: {{ deny: ["{denied}"] }} }} }}
] }}
"""


class RefusedWorkspace(TestCase):
    """NATS does not permit notify to receive the messages of one workspace."""

    timeout = 60

    async def test_the_others_go_on_and_its_messages_come_late(self) -> None:
        server = NatsServer(extra=USERS.format(denied="live.*.workspace.2.>")).start()
        self.addCleanup(server.remove)
        await server.up()
        url = server.url.replace("//", "//notify:secret-of-notify@")
        broker, recorder = make(None, servers=(url,), check_interval=Duration(1)), Recorder()
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        metrics, refused, other = broker._metrics, chat(2, 10), chat(1, 10)
        await gatherResults([broker.follow(refused), broker.follow(other)])
        await until(lambda: "messages of 1 workspace(s) come late" in broker.status().detail)
        for number in range(1, 4):
            await gatherResults(
                [broker.publish(topic, chat_payload(topic, number)) for topic in (refused, other)]
            )
        await recorder.wait(6)
        for topic in (refused, other):
            received = [one.event.message_id for one in recorder.messages if one.topic == topic]
            self.assertEqual(received, [1, 2, 3])
        self.assertEqual(recorder.lost_topics, [])
        self.assertTrue(broker.status().ready)

        words = f'permissions violation for subscription to "{broker._source._live}workspace.w-3.>"'
        broker._denied(words)  # its only follower has gone meanwhile

        server.reload(server.config.read_text().replace("live.*.workspace.2.>", "nothing"))
        while broker._source.problem:
            await until(lambda: not broker._source.problem)
            # The subscription has been requested again, and a refusal comes before this answer.
            await api(broker, "STREAM.INFO.MESSAGES")
        late = metrics.broker_filled._value.get()
        await broker.publish(refused, chat_payload(refused, 4))
        await recorder.wait(7)
        self.assertEqual(metrics.broker_filled._value.get(), late)
        self.assertEqual(metrics.broker_connects._value.get(), 1)
