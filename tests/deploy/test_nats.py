"""etc/nats as it is shipped: three real servers with TLS and nkey users, and what each user may and may not do."""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
from pathlib import Path
from typing import Any

import nats
import nkeys
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stored import Stored
from notify.config import Config, Duration, PluginTable
from notify.control.nats import NATSControl, NATSControlSettings
from notify.errors import StartError
from notify.identity import Presence
from notify.interfaces import Gathered
from notify.messages import Position
from notify.nats.bridge import as_deferred
from notify.registries.jetstream_kv import JetStreamRegistry, KVSettings
from notify.testing import Recorder, chat_payload, make_context
from notify.testing.contracts.atomic import drafts
from notify.testing.fakes import FakeConnection
from notify.topics import chat
from tests.brokers.test_jetstream_atomic import allow
from tests.support.certificates import Authority
from tests.support.natsd import NatsServer, pause, until
from tests.support.ports import free_port

ETC = Path(__file__).parent.parent.parent / "etc" / "nats"
TOPIC = chat(1, 10)


class ShippedServer(NatsServer):
    """A server with the shipped configuration; only paths and ports are changed for this machine."""

    def __init__(self, name: str, routes: tuple[int, ...], cluster_port: int, certificates: Path) -> None:
        super().__init__(name)
        text = (ETC / "nats.conf").read_text()
        for old, new in (
            ('"0.0.0.0:4222"', f'"127.0.0.1:{self.port}"'),
            ('"127.0.0.1:8222"', f'"127.0.0.1:{self.monitor}"'),
            ('"0.0.0.0:6222"', f'"127.0.0.1:{cluster_port}"'),
            ('"/var/lib/nats"', f'"{self.directory}/js"'),
            ("20GB", "1GB"),
            ('"/etc/nats/', f'"{certificates}/'),
        ):
            if old not in text:
                raise AssertionError(f"etc/nats/nats.conf has no {old} any more")
            text = text.replace(old, new)
        self.write(text)
        (self.directory / "users.conf").write_text((ETC / "users.conf").read_text())
        self.arguments = ("-n", name, "--routes", ",".join(f"tls://127.0.0.1:{port}" for port in routes))


class ShippedCluster(TestCase):
    timeout = 90

    async def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        Authority(self.directory).issue(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        self.seeds = {}
        for user in ("NOTIFY", "BACKEND", "OPERATOR"):
            seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
            self.seeds[user] = bytes(seed).decode()
            (self.directory / user).write_bytes(bytes(seed))
            os.environ[f"{user}_NKEY"] = nkeys.from_seed(bytearray(seed)).public_key.decode()
            self.addCleanup(os.environ.pop, f"{user}_NKEY")
        ports = tuple(free_port() for _ in range(3))
        self.servers = [
            ShippedServer(f"nats-{i}", ports, port, self.directory) for i, port in enumerate(ports)
        ]
        for server in self.servers:
            server.start()
            self.addCleanup(server.remove)
        for server in self.servers:
            await server.up()

    def settings(self, **more: Any) -> JetStreamSettings:
        options: dict[str, Any] = {
            "servers": tuple(f"tls://127.0.0.1:{server.port}" for server in self.servers),
            "tls_ca": str(self.directory / "ca.pem"),
            "nkey_seed_file": str(self.directory / "NOTIFY"),
            "replicas": 3,
            "canary_interval": Duration(0.5),
        }
        return JetStreamSettings(**(options | more))

    async def broker(self, delivery: str) -> tuple[JetStreamBroker, Recorder]:
        broker, recorder = (
            JetStreamBroker(self.settings(delivery=delivery), make_context(reactor)),
            Recorder(),
        )
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        return broker, recorder

    async def client(self, user: str) -> Any:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        errors: list[str] = []

        async def failed(error: Exception) -> None:
            errors.append(str(error))

        client = await as_deferred(
            nats.connect(
                f"tls://127.0.0.1:{self.servers[0].port}",
                tls=context,
                nkeys_seed_str=self.seeds[user],
                error_cb=failed,
            )
        )
        self.addCleanup(lambda: as_deferred(client.close()))
        return client, errors

    async def test_notify_has_all_that_it_needs_and_no_more(self) -> None:
        for delivery in ("republish", "consumer"):
            broker, recorder = await self.broker(delivery)
            await broker.follow(TOPIC)
            first = await broker.publish(TOPIC, chat_payload(TOPIC, 1))
            await recorder.wait(1)
            replayed = await broker.replay(TOPIC, Position(first.epoch, first.seq - 1), 5, 10**6)
            self.assertEqual(len(replayed.messages), 1)
            await allow(broker)
            both = await broker.publish_all(drafts(TOPIC, [2, 3], "k"))
            self.assertEqual(await broker.publish_all(drafts(TOPIC, [2, 3], "k")), both)
            broker._poisoned(TOPIC, Stored(first.seq, b"not a message", ""), "a test")
            kept = broker._metrics.dead_letters.labels
            await until(lambda kept=kept: kept("kept")._value.get() + kept("known")._value.get() == 1, 10)
            heard: list[bytes] = []
            broker.hear(lambda topic, payload, heard=heard: heard.append(payload))
            broker.listen(TOPIC)
            await until(
                lambda broker=broker, heard=heard: broker.signal(TOPIC, b"x") and heard, 10, "signals"
            )
            self.assertEqual((broker._refused, broker._signals.problem), ("", ""))
            await broker.stop()
        client, errors = await self.client("NOTIFY")
        for forbidden in ("$JS.API.STREAM.DELETE.MESSAGES", "$JS.API.STREAM.PURGE.MESSAGES", "anything"):
            errors.clear()
            await as_deferred(client.publish(forbidden, b""))
            await until(lambda: errors, 10, forbidden)
            self.assertIn("permissions violation", errors[0])
        errors.clear()
        await as_deferred(client.subscribe("workspace.>"))
        await until(lambda: errors, 10, "subscribing past the stream")

    def config(self) -> Config:
        table = {
            "servers": [f"tls://127.0.0.1:{server.port}" for server in self.servers],
            "tls_ca": str(self.directory / "ca.pem"),
            "nkey_seed_file": str(self.directory / "NOTIFY"),
            "replicas": 3,
        }
        return Config(broker=PluginTable("jetstream", {"jetstream": table}))

    async def test_the_control_has_all_that_it_needs(self) -> None:
        nodes = [
            NATSControl(NATSControlSettings(), make_context(reactor, self.config(), f"node-{n}", n))
            for n in (1, 2)
        ]
        for node in nodes:
            self.addCleanup(node.stop)
            await node.start(lambda command, argument: succeed(argument))
        heard: dict[str, bytes] = {}
        for node in nodes:
            await node.watch(heard.__setitem__)
        self.assertTrue(await nodes[0].keep("revoked.1.7", lambda there: b"1", time.time() + 60))
        await until(lambda: heard == {"revoked.1.7": b"1"}, 20, "what is kept is heard")
        for node in nodes:
            gauge = node._metrics.nodes._value
            await until(lambda gauge=gauge: gauge.get() == 2, 20, "they know each other")
        for _ in range(3):
            gathered = await nodes[0].ask("it", b"7")
            self.assertEqual(gathered, Gathered([("node-1", b"7"), ("node-2", b"7")], []))
        client, _ = await self.client("OPERATOR")
        for subject in ("$SRV.PING.notify", "$SRV.INFO.notify", "$SRV.STATS.notify"):
            reply = await as_deferred(client.request(subject, b"", timeout=10))
            self.assertIn(b'"name":"notify"', reply.data)
        self.assertEqual([node._refused for node in nodes], ["", ""])

    async def test_presence_has_all_that_it_needs(self) -> None:
        config = self.config()
        one, two = [
            JetStreamRegistry(KVSettings(lease=Duration(5)), make_context(reactor, config, f"node-{n}", n))
            for n in (1, 2)
        ]
        for registry in (one, two):
            self.addCleanup(registry.stop)
            await registry.start(lambda topic: None)
        two.watch(TOPIC)
        one.join(FakeConnection(7), TOPIC)
        for seen in ([Presence(7, 1)], []):
            # Any replica may answer, and one may be slightly behind.
            while await two.presence(TOPIC) != seen:
                await pause(0.02)
            if seen:
                self.assertTrue(await two._bucket.lives(one._incarnation))
                await one.stop()
        self.assertFalse(await two._bucket.lives(one._incarnation))
        self.assertEqual((one._refused, two._refused), ("", ""))

    async def test_backends_may_publish_and_nothing_else(self) -> None:
        broker, recorder = await self.broker("republish")
        await broker.follow(TOPIC)
        client, errors = await self.client("BACKEND")
        reply = await as_deferred(client.request(TOPIC.subject, chat_payload(TOPIC), timeout=5))
        self.assertIn(b'"seq"', reply.data)
        await recorder.wait(1)
        for forbidden in (
            "$JS.API.STREAM.INFO.MESSAGES",
            "live.x",
            "workspace.1.chat.1.other",
            "control.MESSAGES.do.drain",
            "control.MESSAGES.beat",
        ):
            errors.clear()
            await as_deferred(client.publish(forbidden, b""))
            await until(lambda: errors, 10, forbidden)
        for forbidden in ("live.>", "workspace.>", "_INBOX_notify.>", "control.>"):
            errors.clear()
            await as_deferred(client.subscribe(forbidden))
            await until(lambda: errors, 10, forbidden)

    async def test_a_backend_has_nats_itself_steer_nothing(self) -> None:
        broker, _ = await self.broker("republish")
        await broker.follow(TOPIC)
        told: list[str] = []
        node = NATSControl(NATSControlSettings(), make_context(reactor, self.config()))
        self.addCleanup(node.stop)
        await node.start(lambda command, argument: told.append(command) or succeed(b"1"))
        await until(lambda: node._connection.connected, 20, "it hears")
        backend, _ = await self.client("BACKEND")
        operator, _ = await self.client("OPERATOR")
        await as_deferred(operator.request("control.MESSAGES.do.first", b'{"argument":1}', timeout=10))
        # NATS reports that a message is stored, to whatever subject the publisher names.
        for subject in ("control.MESSAGES.do.drain", "control.MESSAGES.beat"):
            await as_deferred(backend.publish(TOPIC.subject, chat_payload(TOPIC), reply=subject))
        await as_deferred(backend.request(TOPIC.subject, chat_payload(TOPIC), timeout=5))
        await as_deferred(operator.request("control.MESSAGES.do.last", b'{"argument":1}', timeout=10))
        self.assertEqual(told, ["first", "last"])

    async def test_without_the_right_authority_nobody_connects(self) -> None:
        broker = JetStreamBroker(self.settings(tls_ca=""), make_context(reactor))
        self.addCleanup(broker.stop)
        broker.start(lambda message: None, lambda topic: None).addErrback(lambda failure: None)
        await until(lambda: broker._connection._complaints, 10)
        [error] = {error for _, error in broker._connection._complaints}
        self.assertIn("certificate", error.lower())
        self.assertFalse(broker.status().ready)


class MissingPermissions(TestCase):
    timeout = 60

    async def without(self, needed: str, instead: str = "") -> dict[str, Any]:
        """Start a server whose notify user lacks this line of etc/nats/users.conf; return how to connect to it."""
        text = (ETC / "users.conf").read_text()
        self.assertIn(needed, text)
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        path = Path(self.mktemp())
        path.write_bytes(bytes(seed))
        text = text.replace(needed, instead).replace(
            "$NOTIFY_NKEY", nkeys.from_seed(bytearray(seed)).public_key.decode()
        )
        for user in ("BACKEND", "OPERATOR"):
            other = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
            text = text.replace(f"${user}_NKEY", nkeys.from_seed(bytearray(other)).public_key.decode())
        server = NatsServer(accounts=text).start()
        self.addCleanup(server.remove)
        await server.up()
        return {"servers": (server.url,), "nkey_seed_file": str(path)}

    async def refusal(self, needed: str, **settings: Any) -> str:
        """The error with which notify refuses to start without this line."""
        options = {**await self.without(needed), "request_timeout": Duration(0.5)}
        broker = JetStreamBroker(JetStreamSettings(**(options | settings)), make_context(reactor))
        self.addCleanup(broker.stop)
        error = await self.assertFailure(broker.start(lambda message: None, lambda topic: None), StartError)
        self.assertIn("does not permit", str(error))
        self.assertFalse(broker.status().ready)
        return str(error)

    async def test_each_ends_the_start_with_a_sentence_that_names_it(self) -> None:
        for needed, named in (
            ('"live.>"', 'subscription to "live.'),
            ('"$JS.API.STREAM.CREATE.MESSAGES",', 'publish to "$JS.API.STREAM.CREATE.MESSAGES"'),
            (', "canary.MESSAGES.*"', 'publish to "canary.MESSAGES.node-1"'),
            ('"_INBOX_notify.>"', 'subscription to "_INBOX_notify.'),
            ('"$JS.API.STREAM.INFO.MESSAGES",', 'publish to "$JS.API.STREAM.INFO.MESSAGES"'),
            ('"$JS.EVENT.ADVISORY.STREAM.DELETED.MESSAGES"', "ADVISORY.STREAM.DELETED"),
            ('"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.MESSAGES"', "ADVISORY.STREAM.LEADER_ELECTED"),
        ):
            self.assertIn(named, await self.refusal(needed), needed)

    async def test_a_consumer_needs_its_own(self) -> None:
        for needed, named in (
            ('"$JS.API.CONSUMER.CREATE.MESSAGES.*",', "CONSUMER.CREATE"),
            ('"$JS.API.CONSUMER.MSG.NEXT.MESSAGES.*",', "CONSUMER.MSG.NEXT"),
        ):
            self.assertIn(named, await self.refusal(needed, delivery="consumer"), needed)

    async def test_without_those_of_signals_a_node_does_without_signals(self) -> None:
        options = await self.without('"workspace.*.chat.*.signals"')
        broker, recorder = JetStreamBroker(JetStreamSettings(**options), make_context(reactor)), Recorder()
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        broker.listen(TOPIC)
        await until(lambda: not broker.signal(TOPIC, b"x"), 10, "it is told")
        await broker.follow(TOPIC)
        await broker.publish(TOPIC, chat_payload(TOPIC))
        await recorder.wait(1)
        self.assertTrue(broker.status().ready)
        self.assertEqual(broker._metrics.broker_connects._value.get(), 1)

    async def test_without_those_of_the_control_a_node_starts_and_steers_itself(self) -> None:
        for needed in (
            '"control.MESSAGES.>"\n          ]\n        }\n        subscribe',
            '"control.MESSAGES.>", "$SRV.>"',
        ):
            keep = needed.partition("\n")[2]
            table = {**await self.without(needed, keep), "request_timeout": "500ms"}
            config = Config(broker=PluginTable("jetstream", {"jetstream": table}))
            node = NATSControl(NATSControlSettings(), make_context(reactor, config))
            self.addCleanup(node.stop)
            await node.start(lambda command, argument: succeed(argument))
            # The node still reads the kept records, and checks them every few seconds.
            await node.watch(lambda key, record: None)
            await until(lambda node=node: node._refused, 20, "it is told")
            gathered = await node.ask("it", b"7")
            self.assertEqual((gathered.answers, gathered.missing), ([("node-1", b"7")], []))
            self.assertIn("steers itself alone", gathered.detail)
            self.assertIn("control.MESSAGES", gathered.detail)
            self.assertIn("docs/operations/cluster.md, Permissions", gathered.detail)

    async def test_without_those_of_what_is_kept_a_node_lets_nobody_in(self) -> None:
        for needed, named in (
            ('"$JS.API.STREAM.INFO.MESSAGES_KEPT",', "stream.info.messages_kept"),
            ('"$JS.API.DIRECT.GET.MESSAGES_KEPT"', "direct.get.messages_kept"),
            ('"$JS.API.STREAM.CREATE.MESSAGES_KEPT",', "stream.create.messages_kept"),
        ):
            table = {**await self.without(needed), "request_timeout": "500ms"}
            config = Config(broker=PluginTable("jetstream", {"jetstream": table}))
            node = NATSControl(NATSControlSettings(), make_context(reactor, config))
            self.addCleanup(node.stop)
            await node.start(lambda command, argument: succeed(argument))
            watching = node.watch(lambda key, record: None)
            if "DIRECT" in needed:
                await watching  # there is nothing to read yet
                await node.keep("k", lambda there: b"1", time.time() + 60)
                await node.stop()
                node = NATSControl(NATSControlSettings(), make_context(reactor, config, seed=2))
                self.addCleanup(node.stop)
                await node.start(lambda command, argument: succeed(argument))
                watching = node.watch(lambda key, record: None)
            error = await self.assertFailure(watching, StartError)
            self.assertIn("does not permit what is kept for all nodes", str(error))
            self.assertIn(named, str(error).lower())
