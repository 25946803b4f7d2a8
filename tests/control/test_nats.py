"""The control of several nodes, against a real server."""

from __future__ import annotations

import json
import time
from typing import Any
from unittest.mock import patch

import msgspec
import nats
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.trial.unittest import TestCase

from notify import __version__
from notify.config import Config, Duration, PluginTable
from notify.control import nats as nats_control
from notify.control.nats import NATSControl, NATSControlSettings, Request
from notify.control.rounds import Round
from notify.errors import StartError, Unavailable
from notify.interfaces import Gathered, IControl
from notify.nats.bridge import as_deferred
from notify.testing import make_context
from notify.testing.contracts import ControlContract
from tests.support.natsd import NatsServer, pause, until
from tests.support.proxy import Proxy

ALONE = "this node reaches no other: NATS is away"


def make(url: str, node: str, seed: int = 1, **settings: Any) -> NATSControl:
    broker = PluginTable("jetstream", {"jetstream": {"servers": [url]}})
    settings = {"patience": Duration(5), **settings}
    context = make_context(reactor, Config(broker=broker), node=node, seed=seed)
    return NATSControl(NATSControlSettings(**settings), context)


async def server_of(case: TestCase, **more: Any) -> NatsServer:
    server = NatsServer(**more).start()
    case.addCleanup(server.remove)
    return await server.up()


class Contract(ControlContract, TestCase):
    timeout = 60

    async def make_control(self, node: str) -> IControl:
        return make((await server_of(self)).url, node)


class ContractWithoutNATS(ControlContract, TestCase):
    """A node that cannot reach NATS does by itself what it is asked."""

    timeout = 60
    keeps = False

    async def make_control(self, node: str) -> IControl:
        return make("nats://127.0.0.1:1", node)


class Nodes(TestCase):
    timeout = 120

    async def node(self, url: str, name: str, seed: int = 0, **settings: Any) -> NATSControl:
        """Start a node, and wait until all others have heard it. What each node is asked is in ``self.done``."""
        self.done: list[tuple[str, str, object]] = getattr(self, "done", [])
        self.nodes: list[NATSControl] = getattr(self, "nodes", [])
        control = make(url, name, seed or len(self.nodes) + 1, **settings)

        def do(command: str, argument: bytes) -> Deferred[bytes]:
            self.done.append((name, command, msgspec.json.decode(argument)))
            return succeed(b'"%s"' % name.encode())

        await control.start(do)
        self.addCleanup(control.stop)
        self.nodes.append(control)
        await self.listens(control)
        await self.all_known(len(self.nodes))
        return control

    async def listens(self, control: NATSControl) -> None:
        """Wait until the server has all subscriptions of this node."""
        await until(lambda: control._connection.connected, 20, "it is connected")
        await control._connection.request(f"$SRV.PING.notify.{control._id}", b"", 20)

    async def all_known(self, count: int) -> None:
        for node in self.nodes:
            gauge = node._metrics.nodes
            await until(lambda gauge=gauge: gauge._value.get() == count, 20, "the nodes know each other")

    async def three(self) -> tuple[NatsServer, list[NATSControl]]:
        server = await server_of(self)
        return server, [await self.node(server.url, name) for name in "abc"]

    async def test_all_do_it_once_and_answer_whoever_is_asked(self) -> None:
        _, nodes = await self.three()
        for node in nodes:
            self.done.clear()
            gathered = await node.ask("it", b'{"user_id":7}')
            self.assertEqual(gathered, Gathered([("a", b'"a"'), ("b", b'"b"'), ("c", b'"c"')], []))
            self.assertEqual(sorted(self.done), [(name, "it", {"user_id": 7}) for name in "abc"])

    async def test_one_can_be_meant_by_its_name(self) -> None:
        _, (a, _, _) = await self.three()
        self.assertEqual(await a.ask("it", b"1", "b"), Gathered([("b", b'"b"')], []))
        self.assertEqual(await a.ask("it", b"1", "a"), Gathered([("a", b'"a"')], []))
        self.assertEqual(await a.ask("it", b"1", "d"), Gathered([], []))
        self.assertEqual(self.done, [("b", "it", 1), ("a", "it", 1)])

    async def test_one_that_died_is_named_and_in_time_forgotten(self) -> None:
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        a = await self.node(server.url, "a", patience=Duration(0.5), remember=Duration(4))
        b = await self.node(proxy.url, "b")
        proxy.stall()
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"')], ["b"]))
        proxy.cut()
        await proxy.stop()
        # Node b has lost its connection, and says so.
        await until(lambda: not b._connection.connected, 20)
        self.assertEqual(await b.ask("it", b"1"), Gathered([("b", b'"b"')], ["a"], ALONE))
        self.nodes.remove(b)
        await self.all_known(1)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"')], []))

    async def test_one_that_leaves_is_forgotten_at_once(self) -> None:
        server = await server_of(self)
        a, b = await self.node(server.url, "a"), await self.node(server.url, "b")
        await b.stop()
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"')], []))

    async def test_one_that_leaves_while_it_is_asked_is_not_missed(self) -> None:
        server = await server_of(self)
        a, b = await self.node(server.url, "a"), await self.node(server.url, "b")
        b._do = lambda command, argument: Deferred()  # it does not answer
        asked = a.ask("it", b"1")
        await b.stop()
        self.assertEqual(await asked, Gathered([("a", b'"a"')], []))

    async def test_one_that_has_left_answers_nothing(self) -> None:
        server = await server_of(self)
        b = await self.node(server.url, "b")
        request = msgspec.json.encode(Request(msgspec.Raw(b"1"), "another"))

        def asked() -> int:
            """The number of answers to a request."""
            with patch.object(b._connection, "publish") as publish:
                b._requested(f"{b._asking}it".encode(), "reply", request, b"")
            return int(publish.call_count)

        self.assertEqual(asked(), 1)
        await b.stop()
        # The request had been on its way. If b said that it cannot do this, it would count as missing.
        self.assertEqual(asked(), 0)

    async def test_a_name_that_is_there_again_is_not_missed(self) -> None:
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        a, b = await self.node(server.url, "a"), await self.node(proxy.url, "b")
        proxy.cut()
        await proxy.stop()
        self.nodes.remove(b)
        await self.node(server.url, "b", 9)
        # Both lives of the node count until the earlier one has been silent for some beats.
        await self.all_known(2)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"'), ("b", b'"b"')], []))

    async def test_two_of_one_name_both_do_it(self) -> None:
        server = await server_of(self)
        a, _ = await self.node(server.url, "a", 1), await self.node(server.url, "a", 2)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"'), ("a", b'"a"')], []))
        self.assertEqual(self.done, [("a", "it", 1)] * 2)

    async def test_one_of_two_of_one_name_that_is_silent_is_missed(self) -> None:
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        a = await self.node(server.url, "a", patience=Duration(0.5))
        await self.node(server.url, "b", 2)
        await self.node(proxy.url, "b", 3)
        proxy.stall()
        # Longer than an earlier life is remembered, plus a beat of the other node.
        await pause(8)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"'), ("b", b'"b"')], ["b"]))

    async def test_a_node_that_is_new_knows_all_others_before_it_answers(self) -> None:
        _, _ = await self.three()
        new = make(self.nodes[0]._connection._settings.servers[0], "d", 4)
        self.addCleanup(new.stop)
        await new.start(lambda command, argument: succeed(b"4"))
        await until(lambda: new._connection.connected, 20)
        gathered = await new.ask("it", b"1")
        self.assertEqual([node for node, _ in gathered.answers], ["a", "b", "c", "d"])

    async def test_while_nats_is_away_each_steers_itself_and_says_so(self) -> None:
        server, (a, b, _) = await self.three()
        server.kill()
        await until(lambda: not any(node._connection.connected for node in self.nodes), 20)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"')], ["b", "c"], ALONE))
        self.assertEqual(await a.ask("it", b"1", "b"), Gathered([], ["b"], ALONE))
        server.start()
        await server.up()
        for node in self.nodes:
            await self.listens(node)
        gathered = await b.ask("it", b"1")
        self.assertEqual(gathered, Gathered([("a", b'"a"'), ("b", b'"b"'), ("c", b'"c"')], []))

    async def test_a_connection_that_ends_while_answers_are_waited_for_ends_the_wait(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a", patience=Duration(60))
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        await self.node(proxy.url, "b")
        proxy.stall()
        asked = a.ask("it", b"1")
        server.kill()
        self.assertEqual(await asked, Gathered([("a", b'"a"')], ["b"], ALONE))

    async def test_an_answer_that_nats_does_not_take_is_missing(self) -> None:
        server = await server_of(self, extra="max_payload: 4096")
        a = await self.node(server.url, "a")
        large = make(server.url, "large", 2)
        self.addCleanup(large.stop)
        await large.start(lambda command, argument: succeed(b'"%s"' % (b"x" * 5000)))
        self.nodes.append(large)
        await self.all_known(2)
        self.assertEqual(await a.ask("it", b"1"), Gathered([("a", b'"a"')], ["large"]))
        gathered = await a.ask("it", b'"%s"' % (b"x" * 5000))
        self.assertEqual((gathered.answers, gathered.missing), ([("a", b'"a"')], ["large"]))
        self.assertIn("4096", gathered.detail)

    async def test_what_cannot_be_read_disturbs_nobody(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        client = await as_deferred(nats.connect(server.url))
        self.addCleanup(lambda: as_deferred(client.close()))
        for subject in ("control.MESSAGES.do.it", "control.MESSAGES.beat"):
            deep = b'{"argument":' + b"[" * 5000  # a parser may give this up, or read it to its end
            for data in (b"{", b"\xff", b"[]", b'{"from":1,"id":1}', b'{"argument":', deep):
                await as_deferred(client.publish(subject, data))
            # NATS sends such answers to whatever subject a backend names: a message was stored, or was not.
            for data in (
                b"",
                b'{"stream":"MESSAGES","seq":1}',
                b'{"error":{"code":503},"stream":"MESSAGES","seq":0}',
            ):
                await as_deferred(client.publish(subject, data))
        a._replied(Round({}, lambda _: None), deep)
        # People send such requests, too: no more fields are needed.
        reply = await as_deferred(client.request("control.MESSAGES.do.it", b'{"argument":{}}', timeout=10))
        self.assertEqual(json.loads(reply.data), {"id": a._id, "node": "a", "answer": "a"})
        self.assertEqual(self.done, [("a", "it", {})])

    async def test_the_tools_of_nats_see_the_nodes_as_a_service(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        await a.ask("it", b"1")
        client = await as_deferred(nats.connect(server.url))
        self.addCleanup(lambda: as_deferred(client.close()))
        for subject in ("$SRV.STATS", "$SRV.STATS.notify", f"$SRV.STATS.notify.{a._id}"):
            stats = json.loads((await as_deferred(client.request(subject, b"", timeout=10))).data)
            self.assertEqual(
                (stats["name"], stats["version"], stats["metadata"]), ("notify", __version__, {"node": "a"})
            )
            self.assertEqual(stats["endpoints"][0]["num_requests"], 1)

    def test_settings_that_cannot_work_are_refused(self) -> None:
        for wrong in ({"patience": Duration(0.01)}, {"remember": Duration(1)}):
            error = self.assertRaises(StartError, make, "nats://127.0.0.1:1", "a", **wrong)
            self.assertRegex(str(error), r"^\[control.nats\] patience must be at least 100ms, and remember")


def until_in(seconds: float) -> float:
    return time.time() + seconds


class Kept(TestCase):
    """Records that are kept for all nodes, over real streams."""

    timeout = 120

    def setUp(self) -> None:
        self.heard: dict[str, dict[str, bytes]] = {}

    async def node(self, url: str, name: str, watched: bool = True, **broker: Any) -> NATSControl:
        table = PluginTable("jetstream", {"jetstream": {"servers": [url], **broker}})
        context = make_context(reactor, Config(broker=table), node=name, seed=len(self.heard) + 1)
        control = NATSControl(NATSControlSettings(), context)
        heard = self.heard[name] = {}
        await control.start(lambda command, argument: succeed(b""))
        self.addCleanup(control.stop)
        self.watching = control.watch(heard.__setitem__)
        if watched:
            await self.watching
        return control

    async def keep(self, control: NATSControl, key: str, record: bytes, seconds: float = 600) -> None:
        self.assertTrue(await control.keep(key, lambda there: record, until_in(seconds)))

    async def test_another_node_hears_it_at_once_and_one_that_starts_later_too(self) -> None:
        self.patch(nats_control, "CHECK", 3600.0)
        server = await server_of(self)
        a, _ = await self.node(server.url, "a"), await self.node(server.url, "b")
        await self.keep(a, "revoked.1.7", b"one")
        await until(lambda: self.heard["b"], 20)
        await self.keep(a, "revoked.1.7", b"two")
        await self.keep(a, "revoked.1.8", b"three")
        all_of_it = {"revoked.1.7": b"two", "revoked.1.8": b"three"}
        await self.node(server.url, "c")
        self.assertEqual(self.heard["c"], all_of_it)
        await until(lambda: self.heard["a"] == self.heard["b"] == all_of_it, 20)

    async def test_what_two_keep_at_the_same_time_are_both(self) -> None:
        server = await server_of(self)
        nodes = [await self.node(server.url, name) for name in "abc"]

        def adding(word: bytes) -> Any:
            return lambda there: b" ".join(sorted({*(there or b"").split(), word}))

        waits = [
            node.keep("k", adding(word), until_in(600))
            for node, word in zip(nodes, (b"x", b"y", b"z"), strict=True)
        ]
        for one in waits:
            await one
        await self.node(server.url, "d")
        self.assertEqual(self.heard["d"], {"k": b"x y z"})

    async def test_thousands_are_read(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        # Few at once, so that each has its answer in time even on a busy machine.
        for start in range(0, 2500, 25):
            keys = [f"n.{n}" for n in range(start, start + 25)]
            kept = [a.keep(key, lambda there: b"1" * 1500, until_in(600)) for key in keys]
            await gatherResults(kept, consumeErrors=True)
        await self.node(server.url, "b")
        self.assertEqual(len(self.heard["b"]), 2500)

    async def test_a_node_that_was_cut_off_hears_of_it_when_it_is_back(self) -> None:
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        a, b = await self.node(server.url, "a"), await self.node(proxy.url, "b")
        port = proxy.port
        proxy.cut()
        await proxy.stop()
        await until(lambda: not b._connection.connected, 20)
        await self.keep(a, "k", b"1")
        self.assertEqual(self.heard["b"], {})
        await self.assertFailure(b.keep("k", lambda there: b"2", until_in(600)), Unavailable)
        self.addCleanup(Proxy(server.port, port=port).stop)
        await until(lambda: self.heard["b"] == {"k": b"1"}, 30)

    async def test_what_was_not_heard_on_a_connection_that_stayed_is_found(self) -> None:
        server = await server_of(self)
        a, b = await self.node(server.url, "a"), await self.node(server.url, "b")
        # As behind a server that was cut off from the others for a while.
        self.patch(b, "_record_heard", lambda *_: None)
        for subscription in list(b._connection._subscriptions):
            if ".kept." in subscription.subject:
                b._connection.unsubscribe(subscription)
        await b._connection.request("$SRV.PING", b"", 20)
        await self.keep(a, "k", b"1")
        await until(lambda: self.heard["b"] == {"k": b"1"}, 30)

    async def test_it_can_be_waited_for_until_all_that_was_kept_is_heard(self) -> None:
        self.patch(nats_control, "CHECK", 3600.0)
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        a, b = await self.node(server.url, "a"), await self.node(proxy.url, "b")
        port = proxy.port
        proxy.cut()
        await proxy.stop()
        await until(lambda: not b._connection.connected, 20)
        await self.keep(a, "k", b"1")
        current, not_any_more = b.current(), b.current()
        not_any_more.addErrback(lambda _: None).cancel()
        self.addCleanup(Proxy(server.port, port=port).stop)
        await current
        self.assertEqual(self.heard["b"], {"k": b"1"})
        # On a connection that stayed up, the node reads everything again.
        self.heard["b"].clear()
        self.patch(b._kept, "_read_to", 0)
        await b.current()
        self.assertEqual(self.heard["b"], {"k": b"1"})

    async def test_nobody_is_told_that_all_was_heard_while_nats_is_away(self) -> None:
        server = await server_of(self)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        await self.keep(await self.node(server.url, "a"), "k", b"1")
        port, url = proxy.port, proxy.url
        await proxy.stop()
        await self.node(url, "b", watched=False)
        await pause(1)
        self.assertFalse(self.watching.called)
        self.addCleanup(Proxy(server.port, port=port).stop)
        await self.watching
        self.assertEqual(self.heard["b"], {"k": b"1"})

    async def test_it_ends_by_itself(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        await self.keep(a, "short", b"1", 1)
        await self.keep(a, "long", b"1", 600)
        while (await a._kept._jetstream.api("STREAM.INFO.MESSAGES_KEPT"))["state"]["messages"] > 1:
            await pause(0.1)
        await self.node(server.url, "b")
        self.assertEqual(self.heard["b"], {"long": b"1"})

    async def test_an_acknowledgement_that_is_led_here_takes_no_record_away(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        await self.keep(a, "k", b"1")
        client = await as_deferred(nats.connect(server.url))
        self.addCleanup(lambda: as_deferred(client.close()))
        await a._kept._jetstream.api("STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["workspace.>"]})
        await as_deferred(client.publish("workspace.1", b"{}", reply="control.MESSAGES.kept.k"))
        await until(lambda: b"stream" in self.heard["a"]["k"], 20)
        told: list[bytes] = []
        b = await self.node(server.url, "b", watched=False)
        b._heard = lambda key, record: told.append(record)
        await self.watching
        self.assertEqual(told[0], b"1")

    async def test_a_stream_that_the_operator_owns_is_checked(self) -> None:
        server = await server_of(self)
        await self.node(server.url, "a", watched=False, manage_stream=False)
        error = await self.assertFailure(self.watching, StartError)
        self.assertIn("MESSAGES_KEPT does not exist and manage_stream is false", str(error))
        b = await self.node(server.url, "b")
        config = (await b._kept._jetstream.api("STREAM.INFO.MESSAGES_KEPT"))["config"]
        await self.node(server.url, "c", manage_stream=False)
        await b._kept._jetstream.api("STREAM.UPDATE.MESSAGES_KEPT", {**config, "max_age": 10**12})
        await self.node(server.url, "d", watched=False, manage_stream=False)
        error = await self.assertFailure(self.watching, StartError)
        self.assertIn("max_age is less than 366 days", str(error))

    async def test_a_stream_that_was_deleted_is_made_again(self) -> None:
        server = await server_of(self)
        a = await self.node(server.url, "a")
        await self.keep(a, "k", b"1")
        await a._kept._jetstream.api("STREAM.DELETE.MESSAGES_KEPT")
        while True:
            try:
                await a.keep("k", lambda there: b"2", until_in(600))
                break
            except Unavailable:
                await pause(0.2)
        await self.node(server.url, "b")
        self.assertEqual(self.heard["b"], {"k": b"2"})
