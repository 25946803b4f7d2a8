"""Lists that are stored as one, on real servers: what comes between a list and its answer, and other nodes' repeats."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.config import Duration
from notify.errors import AtFault, TooLarge, Unavailable, Unknown, Unsupported
from notify.interfaces import IBroker
from notify.messages import Draft
from notify.testing import Recorder, chat_payload
from notify.testing.contracts import AtomicContract, TextIds
from notify.testing.contracts.atomic import drafts
from notify.topics import Topic, chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import Cluster, NatsServer, api, pause, until

TOPIC, OTHER = chat(1, 10), chat(1, 11)
SIZE = 2**20


async def allow(broker: JetStreamBroker, on: bool = True) -> None:
    """Let the stream accept batches, as its operator would, and wait until the broker knows."""
    config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
    await api(broker, "STREAM.UPDATE.MESSAGES", config | {"allow_atomic": on})
    broker._set_up("the test wants it to look")
    await until(lambda: broker.status().ready and broker._atomic._takes is on)


class OneServerContract(AtomicContract, TestCase):
    timeout = 60

    async def make_broker(self) -> IBroker:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        return make(server)

    async def prepare(self, broker: IBroker) -> None:
        await allow(broker)


class OneServerWithTextIds(TextIds, OneServerContract):
    pass


class ThreeServersContract(OneServerContract):
    timeout = 120

    async def make_broker(self) -> IBroker:
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        await cluster.up()
        return make(None, servers=cluster.urls, replicas=3)


class Lists:
    """Tests that run on one server, and on three."""

    timeout = 120
    urls: tuple[str, ...]

    async def servers(self) -> None:
        raise NotImplementedError

    async def node(self, name: str = "node-1", **settings: Any) -> JetStreamBroker:
        """Start a broker, on a stream that accepts batches."""
        if not hasattr(self, "urls"):
            await self.servers()
        replicas = 3 if len(self.urls) > 1 else 1
        broker = make(None, name, seed=int(name[-1]), servers=self.urls, replicas=replicas, **settings)
        self.addCleanup(broker.stop)
        recorder = Recorder()
        await broker.start(recorder.deliver, recorder.lost)
        await allow(broker)
        return broker

    async def kept(self, broker: JetStreamBroker, topic: Any = TOPIC) -> list[Any]:
        while True:
            try:
                replayed = await broker.replay(topic, None, 2000, SIZE)
            except Unavailable:  # the broker may not know yet that its connection is gone
                await pause(0.05)
            else:
                return [one.event.message_id for one in replayed.messages]

    async def test_two_nodes_with_the_same_list_store_it_once(self) -> None:
        one, other = await self.node(), await self.node("node-2")
        for number in range(5):
            both = [*drafts(TOPIC, range(20), f"{number}-"), *drafts(OTHER, range(20), f"{number}-")]
            # The second node has another part of the list first, in another order.
            first, second = one.publish_all(both), other.publish_all([*both[30:], *both[:25]])
            positions, others = await gatherResults([first, second])
            self.assertEqual(others, [*positions[30:], *positions[:25]])
        self.assertEqual(sorted(await self.kept(one)), sorted([*range(20)] * 5))
        self.assertEqual(sorted(await self.kept(other, OTHER)), sorted([*range(20)] * 5))

    async def test_lists_of_two_nodes_do_not_mix(self) -> None:
        nodes = await self.node(), await self.node("node-2")
        lists = [
            node.publish_all(drafts(TOPIC, range(number * 10, number * 10 + 10)))
            for number in range(0, 20, 2)
            for number, node in zip((number, number + 1), nodes, strict=True)
        ]
        for positions in await gatherResults(lists):
            self.assertEqual(
                [one.seq for one in positions], [*range(positions[0].seq, positions[0].seq + 10)]
            )
        kept = await self.kept(nodes[0])
        self.assertEqual(sorted(kept), [*range(200)])
        for start in range(0, 200, 10):
            self.assertEqual(kept[start : start + 10], [*range(kept[start], kept[start] + 10)])

    async def test_a_list_whose_answers_were_lost_is_stored_once(self) -> None:
        broker = await self.node()
        heard, deaf = broker._atomic._ask, [True, True]

        async def deafly(*arguments: Any) -> Any:
            answers = await heard(*arguments)
            return [None] * len(answers) if deaf and deaf.pop() else answers

        broker._atomic._ask = deafly
        positions = await broker.publish_all(drafts(TOPIC, range(20)))
        self.assertEqual([one.seq for one in positions], [*range(positions[0].seq, positions[0].seq + 20)])
        self.assertEqual(deaf, [])
        self.assertEqual(await self.kept(broker), [*range(20)])

    async def test_one_that_the_stream_finds_too_large_is_named_and_nothing_is_stored(self) -> None:
        broker = await self.node()
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"max_msg_size": 1000})
        large = Draft(TOPIC, chat_payload(TOPIC, 3, content="x" * 2000))
        wrong = [*drafts(TOPIC, [1, 2]), large, *drafts(TOPIC, [4])]
        error = await self.assertFailure(broker.publish_all(wrong), AtFault)
        self.assertEqual((error.index, type(error.reason)), (2, TooLarge))
        self.assertIn("max_msg_size", str(error))
        self.assertEqual(await self.kept(broker), [])

    async def test_of_a_list_that_a_full_stream_has_no_room_for_nothing_is_stored_and_a_repeat_is_found(
        self,
    ) -> None:
        one, other = await self.node(), await self.node("node-2")
        config = (await api(one, "STREAM.INFO.MESSAGES"))["config"] | {"discard": "new"}
        for full in (
            {"max_msgs": 15},
            {"max_bytes": 6000},
            {"max_msgs_per_subject": 15, "discard_new_per_subject": True},
        ):
            await api(one, "STREAM.UPDATE.MESSAGES", config | {"discard": "old"})
            await api(one, "STREAM.PURGE.MESSAGES")
            key = f"{[*full]}"
            first = await one.publish_all(drafts(TOPIC, range(10), key))
            await api(one, "STREAM.UPDATE.MESSAGES", config | full)
            for node in (one, other):
                # Only half of a list has room. A part of the second list was stored before, so not "nothing" is stored.
                for numbers, error in ((range(10, 20), Unavailable), (range(5, 20), Unknown)):
                    await self.assertFailure(node.publish_all(drafts(TOPIC, numbers, key)), error)
                self.assertEqual(await node.publish_all(drafts(TOPIC, range(10), key)), first)
            state = (await api(one, "STREAM.INFO.MESSAGES"))["state"]
            self.assertEqual((state["messages"], state["last_seq"]), (10, first[-1].seq))

    async def test_a_stream_that_takes_no_batches_refuses_lists_and_stores_nothing(self) -> None:
        broker = await self.node(check_interval=Duration(60))
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        # The broker does not know this yet.
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"allow_atomic": False})
        for _ in range(2):
            error = await self.assertFailure(broker.publish_all(drafts(TOPIC, [1, 2])), Unsupported)
            self.assertIn("allow_atomic", str(error))
            await allow(broker, False)
        self.assertEqual(await self.kept(broker), [])
        await allow(broker)
        await broker.publish_all(drafts(TOPIC, [1, 2]))
        self.assertEqual(await self.kept(broker), [1, 2])

    async def test_more_than_a_batch_may_have_is_refused_and_nothing_is_stored(self) -> None:
        broker = await self.node()
        await self.assertFailure(broker.publish_all(drafts(TOPIC, range(1001))), TooLarge)
        self.assertEqual(await self.kept(broker), [])

    async def test_more_lists_at_once_than_batches_may_be_open_are_all_stored(self) -> None:
        nodes = [await self.node(f"node-{n}") for n in (1, 2, 3)]
        lists: list[Deferred[Any]] = [
            nodes[n % 3].publish_all(drafts(chat(1, 100 + n), range(5))) for n in range(90)
        ]
        await gatherResults(lists)
        for n in range(0, 90, 13):
            self.assertEqual(await self.kept(nodes[0], chat(1, 100 + n)), [*range(5)])


class OneServer(Lists, TestCase):
    async def servers(self) -> None:
        self.server = NatsServer().start()
        self.addCleanup(self.server.remove)
        await self.server.up()
        self.urls = (self.server.url,)

    async def test_a_server_that_is_killed_under_lists_has_each_whole_or_not_at_all(self) -> None:
        broker, other = await self.node(publish_patience=Duration(30)), await self.node("node-2")
        outcomes = []
        for number in range(8):
            numbers = range(number * 100, number * 100 + 100)
            answer = broker.publish_all(drafts(TOPIC, numbers))
            # The other node does not repeat its list.
            once = other.publish_all(drafts(OTHER, numbers)).addErrback(lambda failure: failure.value)
            await pause(0.01 * number)
            self.server.kill()
            for one in other._atomic._lists:
                one.deadline = 0.0
            self.server.start()
            await answer
            outcomes.append(await once)
            await until(lambda: broker.status().ready and other.status().ready)
        self.assertEqual(await self.kept(broker), [*range(800)])
        kept = await self.kept(other, OTHER)
        self.assertEqual(kept, sorted(kept))
        for number, outcome in enumerate(outcomes):
            stored = len([n for n in kept if n // 100 == number])
            self.assertIn(stored, {Unavailable: (0,), Unknown: (0, 100)}.get(type(outcome), (100,)), outcome)

    async def test_where_no_answer_comes_the_outcome_is_unknown_and_a_repeat_finds_all_or_stores_it(
        self,
    ) -> None:
        broker = await self.node(publish_patience=Duration(1), request_timeout=Duration(0.3))
        self.server.pause()
        try:
            await self.assertFailure(broker.publish_all(drafts(TOPIC, range(10), "k")), Unknown)
        finally:
            self.server.resume()
        await until(lambda: broker.status().ready)
        positions = await broker.publish_all(drafts(TOPIC, range(10), "k"))
        self.assertEqual([one.seq for one in positions], [*range(positions[0].seq, positions[0].seq + 10)])
        self.assertEqual(await self.kept(broker), [*range(10)])

    async def test_of_more_lists_than_go_out_while_no_answer_comes_those_that_were_not_sent_are_not_stored(
        self,
    ) -> None:
        broker = await self.node(
            publish_patience=Duration(2), request_timeout=Duration(0.5), canary_interval=Duration(60)
        )
        topics = [chat(1, 100 + n) for n in range(30)]
        self.server.pause()
        try:
            lists: list[Deferred[Any]] = [broker.publish_all(drafts(topic, [1, 2, 3])) for topic in topics]
            outcomes = await gatherResults(
                [one.addErrback(lambda failure: type(failure.value)) for one in lists]
            )
        finally:
            self.server.resume()
        self.assertEqual({*outcomes}, {Unknown, Unavailable})
        await until(lambda: broker.status().ready)
        for topic, outcome in zip(topics, outcomes, strict=True):
            kept = await self.kept(broker, topic)
            self.assertIn(kept, [[]] if outcome is Unavailable else [[], [1, 2, 3]])

    async def test_while_the_broker_is_away_nothing_is_stored(self) -> None:
        broker = await self.node()
        self.server.kill()
        await until(lambda: not broker.status().ready)
        await self.assertFailure(broker.publish_all(drafts(TOPIC, range(10))), Unavailable)
        self.server.start()
        self.assertEqual(await self.kept(broker), [])


class ThreeServers(Lists, TestCase):
    async def servers(self) -> None:
        self.cluster = Cluster()
        self.addCleanup(self.cluster.remove)
        await self.cluster.up()
        self.urls = self.cluster.urls

    async def test_leaders_that_are_killed_under_lists_store_each_once(self) -> None:
        broker = await self.node(publish_patience=Duration(60), canary_interval=Duration(0.3))
        for number in range(3):
            answer = broker.publish_all(drafts(TOPIC, range(number * 100, number * 100 + 100)))
            await pause(0.01 * number)
            server = self.cluster.servers[number]
            server.kill()
            positions = await answer
            self.assertEqual(
                [one.seq for one in positions], [*range(positions[0].seq, positions[0].seq + 100)]
            )
            server.start()
            await server.up()
        self.assertEqual(await self.kept(broker), [*range(300)])


#: permits everything except publishing to one chat
DENIED = """
authorization {{ users: [
  {{ user: notify, password: secret-of-notify, permissions: {{
    publish: {{ deny: ["{subject}"] }}, subscribe: ">"
  }} }}
] }}
"""


class Denied(TestCase):
    """NATS does not permit notify to publish to one topic, and sends an error for each message."""

    timeout = 60

    async def broker(self, denied: Topic) -> JetStreamBroker:
        """A broker that may publish to every topic but this one."""
        server = NatsServer(extra=DENIED.format(subject=denied.subject)).start()
        self.addCleanup(server.remove)
        await server.up()
        url = server.url.replace("//", "//notify:secret-of-notify@")
        broker = make(None, servers=(url,), publish_patience=Duration(5))
        self.addCleanup(broker.stop)
        recorder = Recorder()
        await broker.start(recorder.deliver, recorder.lost)
        await allow(broker)
        return broker

    async def test_what_is_not_permitted_of_a_list_is_refused_and_disturbs_nobody(self) -> None:
        allowed, denied = chat("Acme", "One"), chat("Acme", "Two")
        broker, abandoned = await self.broker(denied), list[str]()
        self.patch(broker._connection, "abandon", abandoned.append)
        refused: Deferred[Any] = broker.publish_all([*drafts(allowed, [1]), *drafts(denied, [1, 2, 3, 4, 5])])
        error = await self.assertFailure(refused, Unavailable)
        self.assertIn("does not permit", str(error))
        error = await self.assertFailure(broker.publish(denied, chat_payload(denied, 6)), Unavailable)
        self.assertIn("does not permit", str(error))
        # Its answer comes after all errors that the server sent about the others.
        await broker.publish_all(drafts(allowed, [7, 8]))
        self.assertEqual(abandoned, [])
        replayed = await broker.replay(allowed, None, 10, SIZE)
        self.assertEqual([one.event.message_id for one in replayed.messages], [7, 8])

    async def test_many_refused_lists_leave_no_batch_open_that_keeps_others_out(self) -> None:
        allowed, denied = chat("Acme", "One"), chat("Acme", "Two")
        broker = await self.broker(denied)
        # One more than the batches that a stream has open at once.
        for _ in range(51):
            await self.assertFailure(
                broker.publish_all([*drafts(allowed, [1]), *drafts(denied, [1])]), Unavailable
            )
        self.assertEqual([one.seq for one in await broker.publish_all(drafts(allowed, [2, 3]))], [1, 2])

    async def test_it_is_not_taken_for_a_topic_that_differs_in_case_only(self) -> None:
        allowed, denied = chat("Acme", "one"), chat("Acme", "One")
        broker = await self.broker(denied)
        # The server answers what it has stored later than it reports what it refuses.
        for one, other in (
            (broker.publish(allowed, chat_payload(allowed)), broker.publish(denied, chat_payload(denied))),
            (broker.publish_all(drafts(allowed, [2, 3])), broker.publish_all(drafts(denied, [2, 3]))),
        ):
            error = await self.assertFailure(other, Unavailable)
            self.assertIn("does not permit", str(error))
            await one
        replayed = await broker.replay(allowed, None, 10, SIZE)
        self.assertEqual([one.event.message_id for one in replayed.messages], [1, 2, 3])


#: an account with room for three lists of 100 messages and a part of the fourth
SCARCE = """
accounts {
  A { jetstream: { max_file: 120KB, max_mem: 10MB }, users: [ { user: notify, password: secret-of-notify } ] }
  SYS { users: [ { user: root, password: secret-of-root } ] }
}
system_account: SYS
"""


class Scarce(TestCase):
    """One server whose storage runs out in the middle of a list: NATS then stores a part of it (docs/guarantees.md)."""

    timeout = 60

    async def test_a_list_for_which_the_storage_did_not_last_is_completed_by_a_repeat(self) -> None:
        server = NatsServer(accounts=SCARCE).start()
        self.addCleanup(server.remove)
        await server.up()
        url = server.url.replace("//", "//notify:secret-of-notify@")
        broker = make(None, servers=(url,), publish_patience=Duration(4))
        self.addCleanup(broker.stop)
        recorder = Recorder()
        await broker.start(recorder.deliver, recorder.lost)
        await allow(broker)
        await broker.follow(TOPIC)
        for start in (0, 100, 200):
            await broker.publish_all(drafts(TOPIC, range(start, start + 100), "k"))
        # The error must not say that nothing was stored: nats-server 2.12.8 refuses such a list, but keeps a part of it.
        await self.assertFailure(broker.publish_all(drafts(TOPIC, range(300, 400), "k")), Unknown)
        server.reload(server.config.read_text().replace("120KB", "1MB"))
        await until(lambda: "Reloaded server configuration" in server.log())
        positions = await broker.publish_all(drafts(TOPIC, range(300, 400), "k"))
        replayed = (await broker.replay(TOPIC, None, 1000, SIZE)).messages
        self.assertEqual([one.event.message_id for one in replayed], [*range(400)])
        self.assertEqual([one.position for one in replayed][300:], positions)
        await recorder.wait(400)
        self.assertEqual([one.event.message_id for one in recorder.messages], [*range(400)])
