"""Lists for one topic on real servers: stored together, once and in order, and delivered together."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.stream import SUBJECTS, Together
from notify.config import Duration
from notify.errors import TooLarge
from notify.messages import Message, Position
from notify.nats import headers
from notify.testing import Recorder, chat_payload
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.natsd import Cluster, NatsServer, api, pause, until

TOPIC, OTHER = chat(1, 10), chat(1, 11)
SIZE = 2**20


class Turns(Recorder):
    """Also counts the reactor turns in which messages arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self._same = False

    def deliver(self, message: Message) -> None:
        if not self._same:
            self.turns += 1
            self._same = True
            reactor.callLater(0, self._over)
        super().deliver(message)

    def _over(self) -> None:
        self._same = False


def sent(broker: JetStreamBroker) -> list[dict[str, str]]:
    """The header fields of all that a broker publishes to its stream from now on."""
    found: list[dict[str, str]] = []
    publish = broker._connection.publish

    def publishing(subject: str, payload: bytes, reply: str = "", fields: Any = None) -> None:
        if subject.startswith("workspace."):
            found.append(fields)
        publish(subject, payload, reply, fields)

    broker._connection.publish = publishing
    return found


def publish(
    broker: JetStreamBroker, numbers: range, key: str = "", topic: Any = TOPIC
) -> Deferred[list[Position]]:
    """Publish a list in one turn."""
    return gatherResults(
        [broker.publish(topic, chat_payload(topic, n), f"{key}{n}" if key else None) for n in numbers],
        consumeErrors=True,
    )


class Lists:
    """Tests that run on one server, and on three."""

    timeout = 120
    together: Together
    urls: tuple[str, ...]

    async def servers(self) -> None:
        raise NotImplementedError

    async def broker(self, node: str = "node-1", **settings: Any) -> tuple[JetStreamBroker, Turns]:
        if not hasattr(self, "urls"):
            await self.servers()
        replicas = 3 if len(self.urls) > 1 else 1
        # A seed of its own: as in production, two nodes do not draw the same ids and inboxes.
        broker = make(None, node, seed=int(node[-1]), servers=self.urls, replicas=replicas, **settings)
        recorder = Turns()
        self.addCleanup(broker.stop)
        await broker.start(recorder.deliver, recorder.lost)
        self.assertEqual(broker._publisher.together, self.together)
        return broker, recorder

    async def whole(self, broker: JetStreamBroker, numbers: list[int]) -> None:
        """Assert that the history has these, and that each read of it proves that nothing is missing."""
        replayed = await broker.replay(TOPIC, None, 1000, SIZE)
        self.assertEqual([one.event.message_id for one in replayed.messages], numbers)
        for one in replayed.messages[::7]:
            rest = await broker.replay(TOPIC, one.position, 1000, SIZE)
            self.assertEqual(
                [m.event.message_id for m in rest.messages],
                [m.event.message_id for m in replayed.messages if m.position.seq > one.position.seq],
            )

    async def test_a_list_goes_out_once_and_comes_together(self) -> None:
        broker, recorder = await self.broker()
        await broker.follow(TOPIC)
        fields = sent(broker)
        positions = await publish(broker, range(1, 51))
        self.assertEqual(len(fields), 50)
        first = positions[0].seq
        self.assertEqual([one.seq for one in positions], [*range(first, first + 50)])
        await recorder.wait(50)
        self.assertEqual([one.position for one in recorder.messages], positions)
        # As many turns as reads of the socket are needed, and some more.
        self.assertLess(recorder.turns, 10)
        await self.whole(broker, [*range(1, 51)])

    async def test_what_is_published_in_a_context_waits_for_its_end_and_not_for_its_first(self) -> None:
        broker, recorder = await self.broker()
        await broker.follow(TOPIC)
        fields = sent(broker)
        with broker.together():
            with broker.together():
                first = publish(broker, range(1, 26))
            rest = publish(broker, range(26, 51))
            other = broker.publish(OTHER, chat_payload(OTHER, 51))
            self.assertEqual(len(fields), 0)
        # All of it is sent before any answer; without the context, only the first message would be.
        self.assertEqual(len(fields), 51)
        positions = [*await first, *await rest]
        await other
        await recorder.wait(50)
        self.assertEqual([one.position for one in recorder.messages], positions)
        await self.whole(broker, [*range(1, 51)])

    async def test_an_error_in_a_context_holds_nothing_up(self) -> None:
        broker, _ = await self.broker()
        fields = sent(broker)

        def failing() -> None:
            with broker.together():
                positions.append(broker.publish(TOPIC, chat_payload(TOPIC, 1)))
                raise ZeroDivisionError

        positions: list[Deferred[Position]] = []
        self.assertRaises(ZeroDivisionError, failing)
        self.assertEqual(len(fields), 1)
        await positions[0]

    async def test_a_list_that_is_repeated_wholly_or_in_part_is_stored_once(self) -> None:
        broker, _ = await self.broker()
        first = await publish(broker, range(1, 21), "k")
        self.assertEqual(await publish(broker, range(1, 21), "k"), first)
        later = await publish(broker, range(11, 31), "k")
        self.assertEqual(later[:10], first[10:])
        again = await publish(broker, range(1, 41), "k")
        self.assertEqual(again[:30], [*first, *later[10:]])
        await self.whole(broker, [*range(1, 41)])

    async def test_beside_others_who_publish_order_holds(self) -> None:
        broker, recorder = await self.broker()
        other, _ = await self.broker("node-2")
        await broker.follow(TOPIC)
        noise: list[Deferred[Any]] = []
        for number in range(10):
            noise += [other.publish(OTHER, chat_payload(OTHER, n)) for n in range(30)]
            mine = publish(broker, range(number * 50, number * 50 + 50))
            noise += [other.publish(chat(1, 20 + n), chat_payload(chat(1, 20 + n))) for n in range(30)]
            await mine
        await gatherResults(noise)
        await recorder.wait(500)
        self.assertEqual([one.event.message_id for one in recorder.messages], [*range(500)])
        self.assertEqual(recorder.lost_topics, [])
        await self.whole(broker, [*range(500)])

    async def test_one_that_the_stream_refuses_does_not_keep_the_others_back(self) -> None:
        broker, _ = await self.broker()
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"max_msg_size": 1000})
        answers = [
            broker.publish(TOPIC, chat_payload(TOPIC, n, content="x" * (2000 if n == 3 else 1)))
            for n in range(1, 7)
        ]
        await self.assertFailure(answers[2], TooLarge)
        del answers[2]
        await gatherResults(answers)
        await self.whole(broker, [1, 2, 4, 5, 6])

    async def test_where_answers_are_lost_the_list_is_stored_once_and_in_order(self) -> None:
        broker, _ = await self.broker(request_timeout=Duration(0.3), check_interval=Duration(60))
        publisher = broker._publisher
        deaf = True
        for name in ("_replied", "_batch_replied"):
            hear = getattr(publisher, name)

            def hears(*arguments: Any, hear: Any = hear) -> None:
                if not deaf:
                    hear(*arguments)

            setattr(publisher, name, hears)
        answers = publish(broker, range(1, 21))
        await pause(0.2)
        deaf = False
        positions = await answers
        self.assertEqual([one.seq for one in positions], sorted({one.seq for one in positions}))
        await self.whole(broker, [*range(1, 21)])


class OneServer(Lists, TestCase):
    together = Together.CHAINED

    async def servers(self) -> None:
        self.server = NatsServer().start()
        self.addCleanup(self.server.remove)
        await self.server.up()
        self.urls = (self.server.url,)

    async def test_a_server_that_is_killed_under_lists_keeps_their_order(self) -> None:
        broker, recorder = await self.broker(canary_interval=Duration(0.3))
        await broker.follow(TOPIC)
        outcomes: list[Deferred[Any]] = []
        for number in range(40):
            if number in (10, 25):
                self.server.kill()
                self.server.start()
            outcomes += [
                broker.publish(TOPIC, chat_payload(TOPIC, n)).addErrback(lambda _: None)
                for n in range(number * 20, number * 20 + 20)
            ]
            await pause(0.02)
        positions = [await one for one in outcomes]
        stored = [n for n, one in enumerate(positions) if one is not None]
        self.assertGreater(len(stored), 200)
        seqs = [one.seq for one in positions if one is not None]
        self.assertEqual(seqs, sorted(set(seqs)))
        await until(lambda: broker.status().ready, 20)
        kept = [m.event.message_id for m in (await broker.replay(TOPIC, None, 1000, SIZE)).messages]
        self.assertLessEqual(set(stored), set(kept))
        self.assertEqual(kept, sorted(set(kept)))
        await until(lambda: len(recorder.messages) >= len(kept), 20)
        self.assertEqual([m.event.message_id for m in recorder.messages], kept)
        await self.whole(broker, kept)

    async def test_a_message_that_is_missing_from_a_list_is_noticed(self) -> None:
        """The message after it names it."""
        broker, _ = await self.broker()
        positions = await publish(broker, range(1, 6))
        page = await broker._reader.after(TOPIC.subject, positions[0].seq)
        self.assertEqual([one.after for one in page.stored], [one.seq for one in positions[:-1]])


class ThreeServers(Lists, TestCase):
    together = Together.BATCHED

    async def servers(self) -> None:
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        await cluster.up()
        self.urls = cluster.urls
        # Such a stream accepts batches only if its operator has allowed it.
        self.together = Together.NO
        broker, _ = await self.broker("node-0")
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        self.assertEqual((sorted(config["subjects"]), config["num_replicas"]), (sorted(SUBJECTS), 3))
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"allow_atomic": True})
        await broker.stop()
        self.together = Together.BATCHED

    async def test_a_stream_that_takes_no_batches_any_more_gets_them_one_by_one(self) -> None:
        broker, _ = await self.broker(check_interval=Duration(60))
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"allow_atomic": False})
        await publish(broker, range(1, 6))
        self.assertEqual(broker._publisher.together, Together.NO)
        fields = sent(broker)
        await publish(broker, range(6, 11))
        self.assertFalse(any("Nats-Batch-Id" in one or headers.AFTER not in one for one in fields))
        await self.whole(broker, [*range(1, 11)])

    async def test_an_older_look_at_the_stream_does_not_undo_what_a_refusal_has_shown(self) -> None:
        broker, _ = await self.broker(check_interval=Duration(60))
        looked, shown, compared = Deferred[None](), Deferred[None](), Deferred[None]()
        info, compare = broker._streams.info, broker._health._compare

        async def look() -> Any:
            state = await info()
            looked.callback(None)
            await shown
            return state

        async def comparing() -> bool:
            broker._streams.info = look
            again = await compare()
            reactor.callLater(0, compared.callback, None)
            return again

        await until(lambda: not broker._health.first, what="the first comparison")
        broker._health._compare = comparing
        broker._health.compare_soon()
        await looked
        broker._streams.info = info
        config = (await api(broker, "STREAM.INFO.MESSAGES"))["config"]
        await api(broker, "STREAM.UPDATE.MESSAGES", config | {"allow_atomic": False})
        await publish(broker, range(1, 6))
        self.assertEqual(broker._publisher.together, Together.NO)
        broker._health._compare = compare
        shown.callback(None)
        await compared
        self.assertEqual(broker._publisher.together, Together.NO)
