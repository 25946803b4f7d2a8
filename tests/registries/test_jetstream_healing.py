"""Presence is right in the end, whatever happens to the bucket; with real servers."""

from __future__ import annotations

import shutil
from collections import Counter
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from notify.errors import Unavailable
from notify.identity import Presence, by_user
from notify.registries.jetstream_kv import JetStreamRegistry
from notify.testing.fakes import FakeConnection
from notify.topics import Topic, chat, user
from tests.registries.test_jetstream_kv import make, nats
from tests.support.natsd import Cluster, NatsServer, pause
from tests.support.proxy import Proxy

TOPIC, OTHER = chat(1, 10), chat(1, 11)


class Healing(TestCase):
    timeout = 120

    async def node(self, url: str, seed: int, **settings: Any) -> JetStreamRegistry:
        registry = make(url, seed, **settings)
        self.addCleanup(registry.stop)
        await registry.start(lambda topic: None)
        return registry

    async def seen(
        self, registry: JetStreamRegistry, topic: Topic, *users: Any, within: float = 10.0
    ) -> None:
        """Wait until a node sees exactly these users, with one connection each."""
        expected = by_user(Presence(one, 1) for one in users)
        found: Any = None
        for _ in range(round(within / 0.05)):
            try:
                found = await registry.presence(topic)
            except Unavailable as error:
                found = error
            if found == expected:
                return
            await pause(0.05)
        self.assertEqual(found, expected)

    async def two(self, server: NatsServer, **settings: Any) -> tuple[JetStreamRegistry, JetStreamRegistry]:
        """Two nodes; the second has five users, and the first sees them."""
        one, two = await self.node(server.url, 1, **settings), await self.node(server.url, 2, **settings)
        for number in range(5):
            two.join(FakeConnection(number, id=f"c{number}"), TOPIC)
        await self.seen(one, TOPIC, *range(5))
        return one, two

    async def test_a_bucket_that_is_emptied_under_living_nodes_is_filled_again(self) -> None:
        one, _ = await self.two(await nats(self))
        await one._bucket._jetstream.api("STREAM.PURGE.KV_PRESENCE")
        self.assertEqual(await one.presence(TOPIC), [])
        await self.seen(one, TOPIC, *range(5))

    async def test_a_bucket_that_is_deleted_is_made_and_filled_again(self) -> None:
        # The renewals notice the loss, not a failing comparison, which would end the connection.
        one, _ = await self.two(await nats(self), lease=9, reconcile=60)
        await one._bucket._jetstream.api("STREAM.DELETE.KV_PRESENCE")
        await self.seen(one, TOPIC, *range(5))

    async def test_single_entries_that_are_lost_or_changed_are_mended(self) -> None:
        one, two = await self.two(await nats(self))
        subject = two._bucket.entries(TOPIC, two._incarnation)
        await one._bucket._jetstream.api("STREAM.PURGE.KV_PRESENCE", {"filter": subject})
        await self.seen(one, TOPIC, *range(5))
        await one._bucket.store(subject, b"[[9,9]]", {})
        await one._bucket.store(f"{subject}.3", b"[[8,8]]", {})
        await one._bucket.store(two._bucket.entries(OTHER, two._incarnation), b"[[7,7]]", {})
        await self.seen(one, TOPIC, *range(5))
        await self.seen(one, OTHER)

    async def test_the_server_of_a_bucket_without_a_copy_restarts_empty_while_nodes_stay_connected(
        self,
    ) -> None:
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        await cluster.up()
        first = await self.node(cluster.urls[0], 9)
        info = await first._bucket._jetstream.api("STREAM.INFO.KV_PRESENCE")
        holder = cluster.named(info["cluster"]["leader"])
        await first.stop()
        other = next(server for server in cluster.servers if server is not holder)
        # Renewals are so rare that none fails meanwhile; a failing one would end the connection.
        one, _ = await self.two(other, lease=9)
        holder.kill()
        shutil.rmtree(holder.directory / "js")
        await holder.start().up()
        await self.seen(one, TOPIC, *range(5), within=40)

    async def test_a_store_that_is_put_back_to_an_older_copy_is_brought_up_to_date(self) -> None:
        server = await nats(self)
        maker = await self.node(server.url, 9)
        await maker._bucket._jetstream.api("STREAM.DELETE.KV_PRESENCE")
        config = {"name": "KV_PRESENCE", "storage": "file", **maker._bucket._wanted({})} | {"storage": "file"}
        await maker._bucket._jetstream.api("STREAM.CREATE.KV_PRESENCE", config)
        await maker.stop()
        one, two = await self.two(server, manage_bucket=False)
        a, b = FakeConnection(20, id="a"), FakeConnection(21, id="b")
        two.join(a, OTHER)
        await self.seen(one, OTHER, 20)
        store, copy = server.directory / "js", server.directory / "copy"
        server.kill()
        shutil.copytree(store, copy)
        await server.start().up()
        await self.seen(one, TOPIC, *range(5))
        two.forget(a)
        two.join(b, TOPIC)
        await self.seen(one, TOPIC, *range(5), 21)
        await self.seen(one, OTHER)
        server.kill()
        shutil.rmtree(store)
        copy.rename(store)
        await server.start().up()
        await self.seen(one, TOPIC, *range(5), 21)
        await self.seen(one, OTHER)

    async def test_the_lease_that_ran_out_while_the_server_stood_still(self) -> None:
        server = await nats(self)
        one, two = await self.two(server, lease=1)
        server.pause()
        await pause(2.5)
        server.resume()
        two.join(FakeConnection(6, id="late"), TOPIC)
        await self.seen(one, TOPIC, *range(5), 6)

    async def test_sixteen_nodes_and_sixty_four_chats_are_compared(self) -> None:
        server = await nats(self)
        changes: list[Topic] = []
        one = make(server.url, 1, lease=60)
        self.addCleanup(one.stop)
        await one.start(changes.append)
        topics = [chat(1, number) for number in range(64)]
        for node in range(16):
            await one._bucket.store(f"$KV.PRESENCE.node.{node:016x}", b"", {})
            for topic in topics:
                subject = one._bucket.entries(topic, f"{node:016x}")
                await one._bucket.store(subject, b"[[%d,1]]" % node, {})
        everybody = {f"{node:016x}": {node: 1} for node in range(16)}
        self.assertEqual(await one._bucket.read(topics), dict.fromkeys(topics, everybody))
        for topic in topics:
            one.watch(topic)
            one._connection.unsubscribe(one._listening[topic])
        while len(one._told) < 64:
            await pause(0.02)
        changes.clear()
        await one._bucket.store(one._bucket.entries(topics[40], f"{3:016x}"), b"[[99,1]]", {})
        while not changes:
            await pause(0.02)
        self.assertEqual(set(changes), {topics[40]})

    async def test_thousands_of_users_in_a_chat_under_a_small_max_payload(self) -> None:
        server = NatsServer(extra="max_payload: 8KB").start()
        self.addCleanup(server.remove)
        await server.up()
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        ids = [f"user-with-a-long-name-{number:06}" for number in range(5000)]
        crowd = [FakeConnection(id, id=id) for id in ids]
        for connection in crowd:
            two.join(connection, TOPIC)
        await self.seen(one, TOPIC, *ids)
        self.assertEqual(two._connection.max_payload, 8192)
        for connection in crowd[10:]:
            two.forget(connection)
        await self.seen(one, TOPIC, *ids[:10])
        for connection in crowd[:10]:
            two.forget(connection)
        await self.seen(one, TOPIC)

    async def test_what_the_bucket_takes_in_a_message_is_obeyed_too(self) -> None:
        server = await nats(self)
        maker = await self.node(server.url, 9)
        config = (await maker._bucket._jetstream.api("STREAM.INFO.KV_PRESENCE"))["config"]
        await maker._bucket._jetstream.api("STREAM.UPDATE.KV_PRESENCE", config | {"max_msg_size": 2048})
        await maker.stop()
        one, two = await self.node(server.url, 1), await self.node(server.url, 2)
        ids = list(range(10**6, 10**6 + 1000))
        for id in ids:
            two.join(FakeConnection(id, id=str(id)), TOPIC)
        await self.seen(one, TOPIC, *ids)

    async def test_nobody_can_ask_for_a_users_own_topic_and_so_it_has_no_entry(self) -> None:
        server = await nats(self)
        one = await self.node(server.url, 1)
        connection = FakeConnection(7, id="a")
        one.join(connection, user(1, 7))
        one.join(connection, TOPIC)
        while not await one._bucket.topics():
            await pause(0.02)
        await one._own.compare()
        self.assertEqual(await one._bucket.topics(), {TOPIC})


class Churn(TestCase):
    """Users come and go on three nodes during one fault after another; presence must be right soon afterwards."""

    timeout = 120

    async def setUp(self) -> None:
        self.random = Random(7)
        self.server = NatsServer(extra="max_payload: 2KB").start()
        self.addCleanup(self.server.remove)
        await self.server.up()
        self.proxies = [Proxy(self.server.port) for _ in range(3)]
        self.nodes = []
        for seed, proxy in enumerate(self.proxies, start=1):
            self.addCleanup(proxy.stop)
            node = make(proxy.url, seed, lease=1)
            self.addCleanup(node.stop)
            await node.start(lambda topic: None)
            self.nodes.append(node)
        self.topics = [chat(1, number) for number in range(30)]
        self.users = [
            [FakeConnection(self.random.randrange(300), id=f"{node}-{number}") for number in range(300)]
            for node in range(3)
        ]

    async def churn(self) -> None:
        self.busy = True
        while self.busy:
            for _ in range(30):
                node = self.random.randrange(3)
                user = self.random.choice(self.users[node])
                topic = self.random.choice([TOPIC, *self.topics])
                turn = self.random.choice("jjjjlls")
                if turn == "j":
                    self.nodes[node].join(user, topic)
                elif turn == "l":
                    self.nodes[node].leave(user, topic)
                else:
                    self.nodes[node].forget(user)
            await pause(0.02)

    async def api(self, call: str) -> None:
        await self.nodes[0]._bucket._jetstream.api(f"{call}.KV_PRESENCE")

    async def emptied(self) -> None:
        await self.api("STREAM.PURGE")

    async def deleted(self) -> None:
        await self.api("STREAM.DELETE")

    async def restarted(self) -> None:
        self.server.kill()
        await self.server.start().up()

    async def stopped_for_longer_than_a_lease(self) -> None:
        self.server.pause()
        await pause(2.5)
        self.server.resume()

    async def one_node_cut_off_for_longer_than_a_lease(self) -> None:
        self.proxies[1].stall()
        await pause(2.5)
        self.proxies[1].stall(False)

    async def all_connections_reset(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    async def wrong(self) -> str:
        """Describe what is wrong now; empty if nothing is."""
        for topic in self.topics:
            users = Counter(
                connection.identity.user_id
                for node in self.nodes
                for connection in node.members(topic)
                if isinstance(connection, FakeConnection) and connection.identity
            )
            expected = by_user(Presence(*item) for item in users.items())
            for number, node in enumerate(self.nodes):
                try:
                    found = await node.presence(topic)
                except Unavailable as error:
                    return str(error)
                if found != expected:
                    return f"node {number} sees {len(found)} of {len(expected)} in {topic.subject}"
        return ""

    async def test_presence_is_right_in_the_end(self) -> None:
        for fault in (
            self.emptied,
            self.deleted,
            self.restarted,
            self.stopped_for_longer_than_a_lease,
            self.one_node_cut_off_for_longer_than_a_lease,
            self.all_connections_reset,
        ):
            churning = Deferred.fromCoroutine(self.churn())
            await pause(0.3)
            await fault()
            self.busy = False
            await churning
            wrong = "not looked"
            for _ in range(100):
                if not (wrong := await self.wrong()):
                    break
                await pause(0.1)
            self.assertEqual(wrong, "", fault.__name__)
