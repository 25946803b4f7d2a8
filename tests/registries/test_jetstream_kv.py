"""Presence across several nodes, with a real server."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify.config import Config, Duration, PluginTable
from notify.errors import StartError, Unavailable
from notify.identity import Presence
from notify.interfaces import IRegistry
from notify.registries.jetstream_kv import JetStreamRegistry, KVSettings
from notify.testing import make_context
from notify.testing.contracts import RegistryContract, TextIds
from notify.testing.fakes import FakeConnection
from notify.topics import Topic, chat
from tests.support.natsd import NatsServer, pause, until
from tests.support.proxy import Proxy

TOPIC = chat(1, 10)


def make(
    url: str, seed: int = 1, lease: float = 2, reconcile: float = 0.3, **settings: Any
) -> JetStreamRegistry:
    broker = PluginTable("jetstream", {"jetstream": {"servers": [url], "canary_interval": "500ms"}})
    context = make_context(reactor, Config(broker=broker), node=f"node-{seed}", seed=seed)
    return JetStreamRegistry(
        KVSettings(lease=Duration(lease), reconcile=Duration(reconcile), **settings), context
    )


async def nats(case: TestCase) -> NatsServer:
    server = NatsServer().start()
    case.addCleanup(server.remove)
    return await server.up()


class Contract(RegistryContract, TestCase):
    timeout = 30

    async def make_registry(self) -> IRegistry:
        return make((await nats(self)).url)


class ContractWithTextIds(TextIds, Contract):
    pass


class Shared(TestCase):
    """The registry reads ``[broker.jetstream]``, too, whichever broker is in use."""

    def made(self, **table: Any) -> JetStreamRegistry:
        broker = PluginTable("memory", {"jetstream": table})
        context = make_context(reactor, Config(broker=broker, source="FILE"))
        return JetStreamRegistry(KVSettings(), context)

    def test_the_connection_is_the_brokers(self) -> None:
        registry = self.made(servers=["nats://127.0.0.1:1"], token="secret", replicas=3)
        self.assertEqual(registry._connection._settings.servers, ("nats://127.0.0.1:1",))
        self.assertEqual(registry._connection._settings.token, "secret")
        self.assertEqual(registry._bucket._replicas, 3)

    def test_a_lease_of_a_stranger_need_not_be_text(self) -> None:
        registry = self.made(servers=["nats://127.0.0.1:1"])
        for block in (b"", b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"):
            registry._lease_heard(b"$KV.presence.\xff", "", b"", block)

    def test_every_mistake_in_it_is_the_registrys_too(self) -> None:
        for table, sentence in (
            (
                {"serverz": []},
                r"^FILE: unknown key 'broker.jetstream.serverz'; known keys are: servers, .*stream",
            ),
            ({"replicas": 9}, r"^FILE: 'broker.jetstream.replicas' is wrong: "),
            ({"servers": []}, r"^\[broker.jetstream\] servers is empty"),
            ({"tls_cert": "x"}, r"^\[broker.jetstream\] tls_cert and tls_key belong together"),
            ({"request_timeout": "1ms"}, r"^\[broker.jetstream\] request_timeout must be at least 50ms"),
            ({"ack_wait": "1ms"}, r"^\[broker.jetstream\] ack_wait must be at least 50ms"),
            ({"dead_letter_stream": "MESSAGES"}, r"^\[broker.jetstream\] stream and dead_letter_stream"),
        ):
            self.assertRegex(str(self.assertRaises(StartError, self.made, **table)), sentence)


class Nodes(TestCase):
    timeout = 60

    async def node(self, url: str, seed: int, **settings: Any) -> JetStreamRegistry:
        registry = make(url, seed, **settings)
        self.changes: list[tuple[int, Topic]] = getattr(self, "changes", [])
        await registry.start(lambda topic: self.changes.append((seed, topic)))
        self.addCleanup(registry.stop)
        return registry

    async def seen(self, registry: JetStreamRegistry, *expected: Presence) -> None:
        """Wait until a node sees exactly these users."""
        for _ in range(400):
            found = await registry.presence(TOPIC)
            if found == list(expected):
                return
            await pause(0.02)
        self.assertEqual(found, list(expected))

    async def test_presence_is_that_of_all_nodes(self) -> None:
        server = await nats(self)
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        a, b, c = FakeConnection(7, id="a"), FakeConnection(7, id="b"), FakeConnection(5, id="c")
        one.join(a, TOPIC)
        two.join(b, TOPIC)
        two.join(c, TOPIC)
        two.join(c, chat(2, 10))
        await self.seen(one, Presence(5, 1), Presence(7, 2))
        await self.seen(two, Presence(5, 1), Presence(7, 2))
        two.forget(c)
        await self.seen(one, Presence(7, 2))
        two.leave(b, TOPIC)
        await self.seen(one, Presence(7, 1))

    async def test_watchers_hear_of_other_nodes(self) -> None:
        server = await nats(self)
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        one.watch(TOPIC)
        await one.presence(TOPIC)
        two.join(FakeConnection(7, id="b"), chat(1, 11))
        two.join(FakeConnection(7, id="a"), TOPIC)
        await until(lambda: self.changes, 10, "the watcher is told")
        self.assertEqual(set(self.changes), {(1, TOPIC)})
        await self.seen(one, Presence(7, 1))

    async def test_a_node_that_stops_takes_its_clients_with_it_at_once(self) -> None:
        server = await nats(self)
        one, two = await self.node(server.url, 1, lease=60), await self.node(server.url, 2, lease=60)
        two.join(FakeConnection(7, id="a"), TOPIC)
        await self.seen(one, Presence(7, 1))
        one.watch(TOPIC)
        await two.stop()
        await until(lambda: (1, TOPIC) in self.changes, 10, "the watcher is told")
        self.assertEqual(await one.presence(TOPIC), [])

    async def test_a_node_that_dies_is_gone_within_its_lease_and_leaves_nothing(self) -> None:
        server = await nats(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        one, two = await self.node(server.url, 1), await self.node(proxy.url, 2)
        two.join(FakeConnection(7, id="a"), TOPIC)
        await self.seen(one, Presence(7, 1))
        one.watch(TOPIC)
        await pause(0.5)
        self.changes.clear()
        proxy.stall()
        proxy.cut()
        await proxy.stop()
        await until(lambda: (1, TOPIC) in self.changes, 6, "the watcher is told")
        await self.seen(one)
        value = one._metrics.presence_orphans._value.get
        await until(lambda: value() == 1, 6, "the entry is removed")

    async def test_a_node_that_was_taken_for_dead_comes_back_with_all_its_clients(self) -> None:
        server = await nats(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        one, two = await self.node(server.url, 1), await self.node(proxy.url, 2)
        two.join(FakeConnection(7, id="a"), TOPIC)
        await self.seen(one, Presence(7, 1))
        proxy.stall()
        await self.seen(one)
        await until(lambda: one._metrics.presence_orphans._value.get() == 1, 6, "the entry is removed")
        proxy.stall(False)
        await self.seen(one, Presence(7, 1))

    async def test_a_server_that_forgot_everything_is_told_again(self) -> None:
        server = await nats(self)
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        two.join(FakeConnection(7, id="a"), TOPIC)
        await self.seen(one, Presence(7, 1))
        server.kill()
        await until(lambda: not one._ready, 10)
        await self.assertFailure(one.presence(TOPIC), Unavailable)
        self.assertEqual(len(two.members(TOPIC)), 1)
        await server.start().up()
        await until(lambda: one._ready and two._ready, 10)
        await self.seen(one, Presence(7, 1))

    async def test_watchers_find_what_they_did_not_hear(self) -> None:
        server = await nats(self)
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        one.watch(TOPIC)
        await pause(0.5)
        one._connection.unsubscribe(one._listening[TOPIC])
        two.join(FakeConnection(7, id="a"), TOPIC)
        await until(lambda: (1, TOPIC) in self.changes, 10, "the comparison finds it")

    async def test_entries_of_nodes_that_nobody_remembers_are_found_at_start(self) -> None:
        server = await nats(self)
        one = await self.node(server.url, 1)
        await one._bucket.store("$KV.PRESENCE.at.00ff00ff00ff00ff.1.chat.10", b"[[9,1]]", {})
        self.assertEqual(await one.presence(TOPIC), [])
        two = await self.node(server.url, 2)
        counts = [node._metrics.presence_orphans._value.get for node in (one, two)]
        await until(lambda: sum(count() for count in counts) == 1, 10, "one of them removes it")

    async def test_a_bucket_that_is_not_ours_is_checked_and_never_changed(self) -> None:
        server = await nats(self)
        registry = make(server.url, 3, manage_bucket=False)
        self.addCleanup(registry.stop)
        error = await self.assertFailure(registry.start(lambda topic: None), StartError)
        self.assertIn("KV_PRESENCE does not exist and manage_bucket is false", str(error))

    def test_a_lease_is_at_least_a_second(self) -> None:
        self.assertRaises(StartError, make, "nats://127.0.0.1:1", lease=0.5)
