"""A client's check of ``prev`` (docs/protocol.md, Positions) with invalid, deleted, purged and expired messages."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.client.actions import Position as ClientPosition
from notify.client.actions import Settings
from notify.client.parts.backoff import Backoff
from notify.client.parts.topics import Topic as ClientTopic
from notify.config import Duration, Limits
from notify.core.dispatcher import Dispatcher, end_of_turn
from notify.core.live import InForce, Live
from notify.messages import Position
from notify.registries.memory import MemoryRegistry, MemorySettings
from notify.testing import chat_payload, event_payload, make_context
from notify.topics import chat
from tests.brokers.test_jetstream import make
from tests.support.member import TOPIC, Member
from tests.support.natsd import NatsServer, until
from tests.support.world import TableAuthenticator

OTHER = chat(1, 11)
MESSAGE, EVENT, POISON = "chat_message", "chat_event", "poison"


class Node:
    """A broker and a dispatcher."""

    def __init__(self, server: NatsServer, name: str, **settings: Any) -> None:
        context = make_context(reactor, node=name)
        self.broker: JetStreamBroker = make(server, name, **settings)
        self.dispatcher = Dispatcher(
            self.broker,
            MemoryRegistry(MemorySettings(), context),
            context.metrics,
            Live(InForce(TableAuthenticator(), Limits(linger=Duration(0)))),
            end_of_turn(reactor),
            lambda seconds, call: None,
            reactor.seconds,  # type: ignore[attr-defined]
        )


class Reader(Member):
    """A client that records its frames, and can report the gaps that its check of ``prev`` finds in them."""

    def __init__(self, node: Node, events: bool) -> None:
        super().__init__(node, "reader", events=events)  # type: ignore[arg-type]
        self.wanted = {MESSAGE, EVENT} if events else {MESSAGE}
        self.since = 0
        self.frames: list[dict[str, Any]] = []

    def come(self, since: Position) -> Reader:
        self.since = since.seq
        self.subscribe(since)
        return self

    @property
    def replayed(self) -> int:
        """The number of frames that came with the answer."""
        return len(self.joined.bodies) if self.joined else 0

    def look(self) -> list[int]:
        self.frames += self.connection.take()
        return [frame["seq"] for frame in self.frames]

    def gaps(self, without: int | None = None) -> list[int]:
        """The seqs before which the check finds a gap; ``without``: as if the frame with this index had never come."""
        joined = self.joined
        assert joined is not None
        topic = ClientTopic(TOPIC.id, Backoff(Settings(), Random(1)), answered=joined.position.seq)
        begin = self.since if joined.recovered else joined.position.seq
        topic.position = ClientPosition(joined.position.epoch, begin)
        found = []
        for number, frame in enumerate(self.frames):
            if number != without:
                if topic.judge(frame) == "gap":
                    found.append(frame["seq"])
                topic.advance(frame)
        return found


class Prev(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        self.server = NatsServer().start()
        self.addCleanup(self.server.remove)
        await self.server.up()
        self.kinds: dict[int, str] = {}
        self.epoch = ""
        self.readers: list[Reader] = []

    async def node(self, name: str, **settings: Any) -> Node:
        node = Node(self.server, name, **settings)
        self.addCleanup(node.broker.stop)
        await node.broker.start(node.dispatcher.deliver, node.dispatcher.lost)
        return node

    async def publish(self, node: Node, *kinds: str) -> None:
        for kind in kinds:
            if kind == POISON:
                reply = await node.broker._connection.request(TOPIC.subject, b"no message")
                self.kinds[int(reply.data.split(b'"seq":')[1].split(b",")[0].rstrip(b"}"))] = POISON
            else:
                payload = chat_payload(TOPIC) if kind == MESSAGE else event_payload(TOPIC)
                position = await node.broker.publish(TOPIC, payload)
                self.kinds[position.seq], self.epoch = kind, position.epoch

    async def come(self, node: Node, seq: int, epoch: str | None = None) -> None:
        for events in (False, True):
            reader = Reader(node, events).come(Position(self.epoch if epoch is None else epoch, seq))
            await until(lambda reader=reader: reader.joined is not None)
            self.readers.append(reader)

    def due(self, reader: Reader) -> list[int]:
        """The seqs that the reader must have been sent."""
        joined = reader.joined
        assert joined is not None
        begin = reader.since if joined.recovered else joined.position.seq
        return [seq for seq, kind in self.kinds.items() if seq > begin and kind in reader.wanted]

    async def through(
        self, remove: Any, recovered: set[bool], told_live: bool = False, **settings: Any
    ) -> None:
        """Readers with and without events: live ones, and ones that resume from each position, on a node that has seen
        everything and on one that has not.

        ``recovered`` is the set of answers that resuming readers get.
        """
        warm = await self.node("warm", **settings)
        await self.come(warm, 0, epoch="")
        await self.publish(
            warm, MESSAGE, EVENT, MESSAGE, POISON, EVENT, EVENT, MESSAGE, MESSAGE, EVENT, MESSAGE
        )
        await until(lambda: self.readers[1].look() == self.due(self.readers[1]))
        live = self.readers[:2]
        before = list(self.kinds)
        await remove(warm)
        await self.publish(warm, EVENT, MESSAGE)
        cold = await self.node("cold", **settings)
        for node in (warm, cold):
            for seq in (0, *before):
                await self.come(node, seq)
        await self.publish(warm, MESSAGE, POISON, EVENT, MESSAGE, EVENT, MESSAGE)
        for reader in self.readers:
            await until(lambda reader=reader: reader.look() == self.due(reader) or reader.connection.closed)
            self.assertEqual(reader.gaps(), [], "a gap where nothing was lost")
            for number in range(len(reader.frames) - 1):
                if number != reader.replayed - 1:  # the answer itself shows that this frame came
                    self.assertEqual(reader.gaps(without=number), [reader.frames[number + 1]["seq"]])
            self.assertIn(
                reader.connection.closed,
                (None, (4004, "history lost") if reader in live and told_live else None),
            )
        self.assertEqual({reader.joined.recovered for reader in self.readers[2:]}, recovered)

    async def test_nothing_but_poison(self) -> None:
        async def nothing(node: Node) -> None:
            pass

        await self.through(nothing, {True})

    async def test_a_message_in_the_middle_is_deleted(self) -> None:
        await self.deleted(2)

    async def test_an_event_in_the_middle_is_deleted(self) -> None:
        await self.deleted(5)

    async def test_poison_is_deleted(self) -> None:
        await self.deleted(3)

    async def test_the_newest_is_deleted(self) -> None:
        await self.deleted(9)

    async def deleted(self, number: int) -> None:
        async def delete(node: Node) -> None:
            seq = list(self.kinds)[number]
            await node.broker._streams.api("STREAM.MSG.DELETE.MESSAGES", {"seq": seq})

        await self.through(delete, {False, True})

    async def test_the_chat_is_purged(self) -> None:
        async def purge(node: Node) -> None:
            await node.broker._streams.api("STREAM.PURGE.MESSAGES", {"filter": TOPIC.subject})

        await self.through(purge, {False, True})

    async def test_the_oldest_have_gone(self) -> None:
        async def push_out(node: Node) -> None:
            for _ in range(6):
                await node.broker.publish(OTHER, chat_payload(OTHER))

        await self.through(push_out, {False, True}, max_messages=10)

    async def test_all_have_gone(self) -> None:
        async def push_out(node: Node) -> None:
            for _ in range(10):
                await node.broker.publish(OTHER, chat_payload(OTHER))

        # NATS no longer knows the predecessor of the next message, so the node may find no proof that none was
        # lost.
        await self.through(push_out, {False}, told_live=True, max_messages=10)
