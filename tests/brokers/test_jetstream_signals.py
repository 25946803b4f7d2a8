"""Signals over real NATS servers: they bypass the stream, and never disturb it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream import signals as room
from notify.interfaces import IBroker
from notify.nats.jetstream import meet
from notify.testing import chat_payload
from notify.testing.contracts import SignalsContract, TextIds
from notify.testing.contracts.signals import Ear
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import Cluster, NatsServer, api, until

TOPIC = chat(1, 10)

#: a user that may do only what a test grants, and one that may do everything
PERMITTED = """
authorization {{ users: [
  {{ user: notify, password: secret-of-notify, permissions: {{
    publish: {{ {publish} }}, subscribe: {{ {subscribe} }}
  }} }}
  {{ user: root, password: secret-of-root }}
] }}
"""
DENY = 'deny: ["workspace.*.chat.*.signals"]'


async def round_trip(broker: Any) -> None:
    """Wait until all that was sent before is at the server, and all that the server had for this node has arrived."""
    await api(broker, "STREAM.INFO.MESSAGES")


class OverNATS(SignalsContract, TestCase):
    timeout = 60

    async def make_brokers(self) -> list[IBroker]:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        self.brokers: list[Any] = [make(server, f"node-{number}") for number in (1, 2)]
        return self.brokers

    async def settle(self) -> None:
        for broker in (*self.brokers, *self.brokers):
            if broker.status().ready:
                await round_trip(broker)


class OverNATSWithTextIds(TextIds, OverNATS):
    pass


class Base(TestCase):
    timeout = 90

    async def server(self, extra: str = "") -> NatsServer:
        server = NatsServer(extra=extra).start()
        self.addCleanup(server.remove)
        return await server.up()

    async def start(self, broker: JetStreamBroker) -> Ear:
        ear = Ear(broker)
        broker.hear(ear.heard)
        self.addCleanup(broker.stop)
        await broker.start(ear.recorder.deliver, ear.recorder.lost)
        return ear

    def connects(self, ear: Ear) -> float:
        value: float = ear.broker._metrics.broker_connects._value.get()
        return value

    def told(self) -> int:
        """How often the log says that the node does without signals."""
        said = [event for event in self.events if "signals (typing, cursors)" in event["log_format"]]
        return len(said)

    def setUp(self) -> None:
        from twisted.logger import globalLogPublisher

        self.events: list[Any] = []
        observer = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)


class Nodes(Base):
    async def test_a_workspace_is_subscribed_to_once_and_others_are_not_heard(self) -> None:
        server = await self.server()
        one, other = [await self.start(make(server, f"node-{number}")) for number in (1, 2)]
        for number in range(20):
            other.broker.listen(chat(1, number))
        other.broker.listen(chat("w-2", 1))
        self.assertEqual(len(other.broker._signals._subscriptions), 2)
        for number in range(1, 20):
            other.broker.unlisten(chat(1, number))
        self.assertEqual(len(other.broker._signals._subscriptions), 2)
        await round_trip(other.broker)
        for topic in (chat(1, 5), chat(3, 1), chat(1, 0), chat("w-2", 1)):
            one.broker.signal(topic, b"x")
        await other.wait(2)
        self.assertEqual([topic for topic, _ in other.signals], [chat(1, 0), chat("w-2", 1)])
        other.broker.unlisten(chat(1, 0))
        self.assertEqual(list(other.broker._signals._subscriptions), ["w-2"])

    async def test_they_go_on_when_a_server_is_gone_and_are_lost_meanwhile(self) -> None:
        cluster = await Cluster().up()
        self.addCleanup(cluster.remove)
        settings = {"servers": cluster.urls, "replicas": 3}
        one, other = [
            await self.start(make(cluster.servers[0], f"node-{number}", **settings)) for number in (1, 2)
        ]
        other.broker.listen(TOPIC)
        name = next(
            server for server in cluster.servers if str(server.port) in other.broker._connection.server
        )
        connects = self.connects(other)
        name.kill()
        await until(lambda: self.connects(other) > connects, 30)
        await until(lambda: other.broker.status().ready and one.broker.status().ready, 30)
        # Signals are never stored: send it again and again, like the client of a user who goes on typing.
        await until(lambda: one.broker.signal(TOPIC, b"again") and other.signals, 20)
        self.assertEqual(set(other.signals), {(TOPIC, b"again")})

    async def test_without_a_server_they_are_lost_at_once(self) -> None:
        server = await self.server()
        one = await self.start(make(server))
        one.broker.listen(TOPIC)
        server.kill()
        await until(lambda: not one.broker._connection.connected)
        self.assertFalse(one.broker.signal(TOPIC, b"x"))
        server.start()
        await server.up()
        await until(lambda: one.broker.status().ready)
        self.assertTrue(one.broker.signal(TOPIC, b"y"))
        await one.wait(1)
        self.assertEqual(one.signals, [(TOPIC, b"y")])

    async def test_one_that_the_server_does_not_take_is_lost_and_nothing_else(self) -> None:
        one = await self.start(make(await self.server("max_payload: 64KB")))
        one.broker.listen(TOPIC)
        self.assertFalse(one.broker.signal(TOPIC, b"x" * 70_000))
        self.assertTrue(one.broker.signal(TOPIC, b"x"))
        await one.wait(1)
        self.assertEqual(self.connects(one), 1)

    async def test_nothing_is_put_behind_what_waits_for_a_server_that_takes_nothing(self) -> None:
        server = await self.server()
        one = await self.start(make(server))
        server.pause()
        sent = 0
        while one.broker.signal(TOPIC, b"x" * 1000) and sent < 10 * room.UNSENT:
            sent += 1
        self.assertLess(sent, 2 * room.UNSENT)
        server.resume()


class Refused(Base):
    """A server whose operator has not granted the subjects of signals: an upgrade must not require that."""

    async def refused(self, publish: str, subscribe: str) -> tuple[NatsServer, Ear]:
        server = await self.server(PERMITTED.format(publish=publish, subscribe=subscribe))
        ear = await self.start(make(server, user="notify", password="secret-of-notify"))
        return server, ear

    async def goes_on(self, ear: Ear) -> None:
        """Assert that messages are published and delivered, still over the first connection."""
        await ear.broker.follow(TOPIC)
        await ear.broker.publish(TOPIC, chat_payload(TOPIC))
        await ear.recorder.wait(1)
        self.assertTrue(ear.broker.status().ready)
        self.assertEqual(self.connects(ear), 1)

    async def test_publishing_is_not_permitted(self) -> None:
        _, ear = await self.refused(DENY, 'allow: [">"]')
        ear.broker.listen(TOPIC)
        self.assertTrue(ear.broker.signal(TOPIC, b"x"))
        await until(lambda: not ear.broker.signal(TOPIC, b"x"))
        await self.goes_on(ear)
        self.assertIn("signals are not sent: NATS does not permit them", ear.broker.status().detail)
        self.assertEqual((self.told(), ear.signals), (1, []))
        self.flushLoggedErrors()

    async def test_subscribing_is_not_permitted(self) -> None:
        _, ear = await self.refused('allow: [">"]', DENY)
        for workspace in range(1, 20):
            ear.broker.listen(chat(workspace, 10))
        await until(self.told)
        await round_trip(ear.broker)
        await self.goes_on(ear)
        self.assertEqual(self.told(), 1)
        self.flushLoggedErrors()

    async def test_it_is_looked_at_again_and_works_once_it_is_granted(self) -> None:
        self.patch(room, "AGAIN", 0.3)
        server, ear = await self.refused(DENY, DENY)
        ear.broker.listen(TOPIC)
        await until(self.told)
        everything = 'allow: [">"]'
        granted = server.config.read_text().replace(DENY, everything)
        self.assertNotEqual(granted, server.config.read_text())
        server.reload(granted)
        await until(lambda: ear.broker.signal(TOPIC, b"x") and ear.signals, 20)
        self.assertEqual(self.told(), 1)
        self.flushLoggedErrors()


class Stored(Base):
    """A stream that would store signals."""

    async def test_nothing_is_sent_to_a_stream_that_covers_their_subjects(self) -> None:
        server = await self.server()
        one = await self.start(make(server))
        config = (await api(one.broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(
            one.broker,
            "STREAM.UPDATE.MESSAGES",
            config | {"subjects": ["workspace.*.chat.>", "workspace.*.user.*.notifications"]},
        )
        await one.broker.stop()
        other = await self.start(make(server, "node-2", manage_stream=False))
        other.broker.listen(TOPIC)
        self.assertTrue(other.broker.status().ready)
        self.assertFalse(other.broker.signal(TOPIC, b"x"))
        self.assertIn("the stream covers their subjects", other.broker.status().detail)
        self.assertEqual(self.told(), 1)
        self.assertEqual((await api(other.broker, "STREAM.INFO.MESSAGES"))["state"]["messages"], 0)
        await api(other.broker, "STREAM.UPDATE.MESSAGES", config)
        await other.broker._compare()
        self.assertTrue(other.broker.signal(TOPIC, b"y"))
        await other.wait(1)
        self.flushLoggedErrors()

    def test_whether_two_patterns_meet(self) -> None:
        for one, met in (
            ("workspace.*.chat.*.signals", True),
            ("workspace.1.chat.5.signals", True),
            ("workspace.>", True),
            (">", True),
            ("*.1.>", True),
            ("workspace.*.*.*.*", True),
            ("workspace.*.chat.*.messages", False),
            ("workspace.*.user.*.notifications", False),
            ("workspace.*.chat.*", False),
            ("workspace.*.chat.*.signals.x", False),
            ("dead.>", False),
        ):
            self.assertIs(meet(one, room.SUBJECTS), met, one)
            self.assertIs(meet(room.SUBJECTS, one), met, one)
