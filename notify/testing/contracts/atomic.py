"""The contract of a broker that can store several messages atomically (:class:`notify.interfaces.IAtomic`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyObject

from notify.errors import AtFault, Unavailable
from notify.interfaces import IAtomic, IBroker, atomic_of
from notify.messages import Draft, Poison, Position
from notify.testing.contracts.ids import IntegerIds
from notify.testing.fakes import chat_payload, notification_payload
from notify.testing.recorder import Recorder
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


#: a size limit in bytes that no replay here reaches
SIZE = 2**20


def drafts(topic: Topic, numbers: Sequence[int], key: str = "") -> list[Draft]:
    """Chat messages with these ids, each under a key with this prefix, or without a key if it is empty."""
    return [Draft(topic, chat_payload(topic, n), f"{key}{n}" if key else None) for n in numbers]


class AtomicContract(IntegerIds, Suite):
    """Subclass this together with a ``TestCase``, and say how to create a broker."""

    async def make_broker(self) -> IBroker:
        """Return a new broker that is not started and has an empty history. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def prepare(self, broker: IBroker) -> None:
        """Do what a running broker needs before it can store several messages atomically."""

    async def started(self) -> tuple[IBroker, IAtomic, Recorder]:
        """A running broker, the same as an ``IAtomic``, and the recorder of what it delivers."""
        broker, recorder = await self.make_broker(), Recorder()
        await broker.start(recorder.deliver, recorder.lost)
        self.addCleanup(broker.stop)
        await self.prepare(broker)
        return broker, atomic_of(broker), recorder

    async def ids(self, broker: IBroker, topic: Topic) -> list[object]:
        """The ids of a chat's stored messages."""
        replayed = await broker.replay(topic, None, 2000, SIZE)
        return [message.event.message_id for message in replayed.messages]

    async def test_provides_the_interface(self) -> None:
        broker, _, _ = await self.started()
        self.assertTrue(verifyObject(IAtomic, broker))

    async def test_all_of_a_list_is_stored_and_delivered_in_order(self) -> None:
        broker, atomic, recorder = await self.started()
        topic = self.chat(1, 10)
        await broker.follow(topic)
        positions = await atomic.publish_all(drafts(topic, range(1, 51)))
        self.assertEqual(sorted({one.seq for one in positions}), [one.seq for one in positions])
        await recorder.wait(50)
        self.assertEqual([m.event.message_id for m in recorder.messages], [*range(1, 51)])
        self.assertEqual([m.position for m in recorder.messages], positions)
        replayed = await broker.replay(topic, positions[9], 100, SIZE)
        self.assertEqual([m.position for m in replayed.messages], positions[10:])

    async def test_a_list_may_be_of_many_topics_in_any_order(self) -> None:
        broker, atomic, recorder = await self.started()
        one, other, user = self.chat(1, 10), self.chat(1, 11), self.user(1, 10)
        for topic in (one, other, user):
            await broker.follow(topic)
        mixed = [
            draft
            for pair in zip(drafts(one, [1, 2, 3]), drafts(other, [4, 5, 6]), strict=True)
            for draft in pair
        ]
        positions = await atomic.publish_all([*mixed, Draft(user, notification_payload(user, 7))])
        await recorder.wait(7)
        for topic, mine in ((one, positions[:6:2]), (other, positions[1:6:2]), (user, positions[6:])):
            self.assertEqual([m.position for m in recorder.messages if m.topic == topic], mine)
            self.assertEqual([m.position for m in (await broker.replay(topic, None, 9, SIZE)).messages], mine)
        self.assertEqual(await self.ids(broker, one), [1, 2, 3])

    async def test_of_a_list_with_one_that_is_refused_nothing_is_stored(self) -> None:
        broker, atomic, recorder = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        await broker.follow(topic)
        wrong = [*drafts(topic, [1, 2], "k"), Draft(topic, b"{}"), *drafts(other, [4])]
        refused: Deferred[Any] = atomic.publish_all(wrong)
        error = await self.assertFailure(refused, AtFault)
        self.assertEqual(error.index, 2)
        self.assertIsInstance(error.reason, Poison)
        # Its key is not used up either.
        await atomic.publish_all(drafts(topic, [1], "k"))
        await recorder.wait(1)
        self.assertEqual((await self.ids(broker, topic), await self.ids(broker, other)), ([1], []))

    async def test_a_list_that_is_repeated_is_stored_once_and_has_its_first_positions(self) -> None:
        broker, atomic, _ = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        both = [*drafts(topic, [1, 2, 3], "k"), *drafts(other, [4, 5], "k")]
        first = await atomic.publish_all(both)
        await broker.publish(topic, chat_payload(topic, 9))
        self.assertEqual(await atomic.publish_all(both), first)
        again: list[Deferred[list[Position]]] = [atomic.publish_all(both) for _ in range(3)]
        self.assertEqual(await gatherResults(again), [first] * 3)
        self.assertEqual(
            (await self.ids(broker, topic), await self.ids(broker, other)), ([1, 2, 3, 9], [4, 5])
        )

    async def test_of_a_list_of_which_a_part_is_there_the_rest_is_stored(self) -> None:
        broker, atomic, _ = await self.started()
        topic = self.chat(1, 10)
        there = [await broker.publish(topic, chat_payload(topic, n), f"k{n}") for n in (2, 4)]
        positions = await atomic.publish_all(drafts(topic, [1, 2, 3, 4, 5], "k"))
        self.assertEqual([positions[1], positions[3]], there)
        self.assertEqual(await self.ids(broker, topic), [2, 4, 1, 3, 5])
        self.assertEqual(await atomic.publish_all(drafts(topic, [1, 2, 3, 4, 5], "k")), positions)
        self.assertEqual(await self.ids(broker, topic), [2, 4, 1, 3, 5])

    async def test_two_lists_that_have_a_part_in_common_store_it_once(self) -> None:
        broker, atomic, _ = await self.started()
        topic = self.chat(1, 10)
        one, other = (
            atomic.publish_all(drafts(topic, [1, 2, 3], "k")),
            atomic.publish_all(drafts(topic, [3, 4], "k")),
        )
        positions, others = await one, await other
        self.assertEqual(positions[2], others[0])
        self.assertEqual(await self.ids(broker, topic), [1, 2, 3, 4])

    async def test_a_key_that_a_list_has_twice_is_one_message(self) -> None:
        broker, atomic, _ = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        same = [Draft(t, chat_payload(t, n), "same") for t, n in ((topic, 1), (other, 2), (topic, 3))]
        first, elsewhere, again = await atomic.publish_all(same)
        self.assertEqual(first, again)
        self.assertNotEqual(first, elsewhere)
        self.assertEqual((await self.ids(broker, topic), await self.ids(broker, other)), ([1], [2]))

    async def test_without_keys_each_list_is_another(self) -> None:
        broker, atomic, _ = await self.started()
        topic = self.chat(1, 10)
        await gatherResults([atomic.publish_all(drafts(topic, [1, 2])) for _ in range(2)])
        self.assertEqual(await self.ids(broker, topic), [1, 2, 1, 2])

    async def test_lists_keep_their_place_among_what_is_published_without_waiting(self) -> None:
        broker, atomic, _ = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        under_way: list[Deferred[Any]] = [
            broker.publish(topic, chat_payload(topic, 1)),
            broker.publish(topic, chat_payload(topic, 2)),
            atomic.publish_all([*drafts(topic, [3, 4]), *drafts(other, [1])]),
            broker.publish(topic, chat_payload(topic, 5)),
            atomic.publish_all([*drafts(other, [2]), *drafts(topic, [6, 7])]),
            broker.publish(other, chat_payload(other, 3)),
            broker.publish(topic, chat_payload(topic, 8)),
        ]
        await gatherResults(under_way)
        self.assertEqual(await self.ids(broker, topic), [*range(1, 9)])
        self.assertEqual(await self.ids(broker, other), [1, 2, 3])

    async def test_a_thousand_messages_are_stored_as_one(self) -> None:
        broker, atomic, _ = await self.started()
        topic = self.chat(1, 10)
        positions = await atomic.publish_all(drafts(topic, range(1000), "k"))
        self.assertEqual(await self.ids(broker, topic), [*range(1000)])
        self.assertEqual(await atomic.publish_all(drafts(topic, range(1000), "k")), positions)

    async def test_after_stop_nothing_is_stored(self) -> None:
        broker, atomic, _ = await self.started()
        await broker.stop()
        await self.assertFailure(atomic.publish_all(drafts(self.chat(1, 10), [1, 2])), Unavailable)
