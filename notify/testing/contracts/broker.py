"""The contract of every broker (:class:`notify.interfaces.IBroker`)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import CancelledError, gatherResults, maybeDeferred
from zope.interface.verify import verifyObject

from notify.errors import HistoryLost, Unavailable
from notify.interfaces import IBroker, ITogether
from notify.messages import Poison, Position, Replayed, parse_event
from notify.testing.contracts.pages import PagesContract
from notify.testing.fakes import chat_payload, event_payload, notification_payload
from notify.testing.recorder import Recorder
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


#: a size limit in bytes that no replay here reaches
SIZE = 2**20


class BrokerContract(PagesContract, Suite):
    """Subclass this together with a ``TestCase``, and say how to create a broker and how to discard its history."""

    async def make_broker(self) -> IBroker:
        """Return a new broker that is not started and has an empty history. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        """Discard all stored messages of a topic, as their age or an operator would."""
        raise NotImplementedError

    async def started(self) -> tuple[IBroker, Recorder]:
        """A running broker, and the recorder of what it delivers."""
        broker, recorder = await self.make_broker(), Recorder()
        await broker.start(recorder.deliver, recorder.lost)
        self.addCleanup(broker.stop)
        return broker, recorder

    async def test_provides_the_interface(self) -> None:
        broker, _ = await self.started()
        self.assertTrue(verifyObject(IBroker, broker))
        self.assertTrue(broker.status().ready)

    async def test_delivers_what_is_published_after_the_follow_in_order(self) -> None:
        broker, recorder = await self.started()
        topic = self.chat(1, 10)
        before = await broker.publish(topic, chat_payload(topic, 1))
        followed = await broker.follow(topic)
        self.assertEqual(followed.position, before)
        self.assertIn(followed.event, (None, parse_event(topic, chat_payload(topic, 1))))
        sent = await gatherResults([broker.publish(topic, chat_payload(topic, n)) for n in range(2, 52)])
        await recorder.wait(50)
        self.assertEqual([m.event.message_id for m in recorder.messages], list(range(2, 52)))
        self.assertEqual([m.position for m in recorder.messages], sent)
        self.assertEqual([m.position.seq for m in recorder.messages], sorted({p.seq for p in sent}))
        self.assertEqual({m.topic for m in recorder.messages}, {topic})

    async def test_what_is_published_together_has_outcomes_and_an_order_as_ever(self) -> None:
        broker, recorder = await self.started()
        together = cast(ITogether, broker).together if ITogether.providedBy(broker) else nullcontext
        topic, other = self.chat(1, 10), self.chat(1, 11)
        await broker.follow(topic)
        with together():
            sent = [broker.publish(topic, chat_payload(topic, n)) for n in range(1, 31)]
            poison = maybeDeferred(broker.publish, topic, b"{}")
            elsewhere = broker.publish(other, chat_payload(other, 31), "key")
        positions = await gatherResults(sent)
        await self.assertFailure(poison, Poison)
        with together():
            again = broker.publish(other, chat_payload(other, 31), "key")
        self.assertEqual(await again, await elsewhere)
        last = await broker.publish(topic, chat_payload(topic, 32))
        await recorder.wait(31)
        self.assertEqual([m.event.message_id for m in recorder.messages], [*range(1, 31), 32])
        self.assertEqual([m.position for m in recorder.messages], [*positions, last])

    async def test_a_topic_without_messages_has_position_zero(self) -> None:
        broker, _ = await self.started()
        self.assertEqual((await broker.follow(self.chat(1, 11))).position.seq, 0)

    async def test_delivers_only_followed_topics_and_keeps_tenants_apart(self) -> None:
        broker, recorder = await self.started()
        mine, other_chat, other_tenant = self.chat(1, 10), self.chat(1, 12), self.chat(2, 10)
        await broker.follow(mine)
        for topic in (other_chat, other_tenant, mine):
            await broker.publish(topic, chat_payload(topic))
        await recorder.wait(1)
        self.assertEqual([m.topic for m in recorder.messages], [mine])

    async def test_unfollow_ends_delivery_and_follow_begins_it_again(self) -> None:
        broker, recorder = await self.started()
        topic, marker = self.chat(1, 10), self.chat(1, 99)
        await broker.follow(topic)
        await broker.follow(marker)
        broker.unfollow(topic)
        broker.unfollow(self.chat(5, 5))
        missed = await broker.publish(topic, chat_payload(topic, 1))
        await broker.publish(marker, chat_payload(marker, 2))
        await recorder.wait(1)
        self.assertEqual([m.topic for m in recorder.messages], [marker])
        self.assertEqual((await broker.follow(topic)).position, missed)
        await broker.publish(topic, chat_payload(topic, 3))
        await recorder.wait(2)
        self.assertEqual(recorder.messages[-1].event.message_id, 3)

    async def test_events_have_places_in_their_chats_sequence(self) -> None:
        broker, recorder = await self.started()
        topic = self.chat(1, 10)
        payloads = [
            chat_payload(topic, 1),
            event_payload(topic, 2, "edited", {"content": "x"}, refers_to=1),
            event_payload(topic, 3, "joined", None, refers_to="a-1"),
        ]
        before = await broker.publish(topic, payloads[0])
        await broker.follow(topic)
        sent = [await broker.publish(topic, payload) for payload in payloads[1:]]
        await recorder.wait(2)
        expected = [parse_event(topic, payload) for payload in payloads]
        self.assertEqual([m.event for m in recorder.messages], expected[1:])
        self.assertEqual([m.position for m in recorder.messages], sent)
        replayed = (await broker.replay(topic, None, 10, SIZE)).messages
        self.assertEqual([m.event for m in replayed], expected)
        self.assertEqual([m.position for m in replayed], [before, *sent])
        broker.unfollow(topic)
        followed = await broker.follow(topic)
        self.assertEqual(followed.position, sent[-1])
        self.assertIn(followed.event, (None, expected[-1]))

    async def test_notifications_have_topics_of_their_own(self) -> None:
        broker, recorder = await self.started()
        topic = self.user(1, 10)
        await broker.follow(topic)
        await broker.publish(topic, notification_payload(topic, 7, data={"a": [1, None]}))
        await recorder.wait(1)
        event = recorder.messages[0].event
        self.assertEqual(event.notification_id, 7)
        self.assertEqual(bytes(event.data), b'{"a":[1,null]}')

    async def test_replays_what_came_after_a_position(self) -> None:
        broker, _ = await self.started()
        topic, noise = self.chat(1, 10), self.chat(1, 11)
        positions = []
        for n in range(1, 8):
            positions.append(await broker.publish(topic, chat_payload(topic, n)))
            await broker.publish(noise, chat_payload(noise, n))
        replayed = await broker.replay(topic, positions[1], 100, SIZE)
        self.assertEqual([m.event.message_id for m in replayed.messages], [3, 4, 5, 6, 7])
        self.assertEqual(([m.position for m in replayed.messages], replayed.more), (positions[2:], False))
        self.assertEqual(await broker.replay(topic, positions[-1], 100, SIZE), Replayed([], False))
        everything = await broker.replay(topic, Position(positions[0].epoch, 0), 100, SIZE)
        self.assertEqual([m.position for m in everything.messages], positions)
        kept = await broker.replay(topic, None, 3, SIZE)
        self.assertEqual([m.position for m in kept.messages], positions[:3])
        self.assertEqual(await broker.replay(self.chat(1, 12), None, 3, SIZE), Replayed([], False))

    async def test_a_replay_is_bounded_in_messages_and_tells_whether_there_are_more(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        positions = [await broker.publish(topic, chat_payload(topic, n)) for n in range(1, 6)]
        for limit, expected, more in ((1, [2], True), (3, [2, 3, 4], True), (4, [2, 3, 4, 5], False)):
            replayed = await broker.replay(topic, positions[0], limit, SIZE)
            self.assertEqual([m.event.message_id for m in replayed.messages], expected)
            self.assertEqual(replayed.more, more)

    async def test_a_replay_is_bounded_in_bytes_but_gives_at_least_one_message(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        payloads = [chat_payload(topic, n, "x" * 1000) for n in range(1, 5)]
        positions = [await broker.publish(topic, payload) for payload in payloads]
        size = len(payloads[0])
        for bound, expected, more in (
            (0, [2], True),
            (2 * size - 1, [2], True),
            (2 * size, [2, 3], True),
            (3 * size, [2, 3, 4], False),
        ):
            replayed = await broker.replay(topic, positions[0], 100, bound)
            self.assertEqual([m.event.message_id for m in replayed.messages], expected, bound)
            self.assertEqual(replayed.more, more, bound)

    async def test_where_a_part_is_of_no_use_it_may_be_left_out_but_never_told_as_all(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        positions = [await broker.publish(topic, chat_payload(topic, n)) for n in range(1, 6)]
        size = len(chat_payload(topic, 1))
        for limit, bound in ((3, SIZE), (100, size)):
            cut = await broker.replay(topic, positions[0], limit, bound, whole=True)
            self.assertTrue(cut.more)
            self.assertEqual([m.position for m in cut.messages], positions[1 : 1 + len(cut.messages)])
        fits = await broker.replay(topic, positions[0], 4, 4 * size, whole=True)
        self.assertEqual(([m.position for m in fits.messages], fits.more), (positions[1:], False))

    async def test_a_replay_that_is_given_up_disturbs_no_other(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        positions = [await broker.publish(topic, chat_payload(topic, n)) for n in range(1, 4)]
        given_up = broker.replay(topic, positions[0], 100, SIZE)
        other = broker.replay(topic, positions[0], 100, SIZE)
        given_up.addErrback(lambda failure: failure.trap(CancelledError))
        given_up.cancel()
        self.assertEqual([m.position for m in (await other).messages], positions[1:])
        await given_up

    async def test_a_message_says_how_large_its_payload_is(self) -> None:
        broker, recorder = await self.started()
        topic = self.chat(1, 10)
        payloads = [chat_payload(topic, n, "é" * 10**n) for n in range(4)]
        await broker.follow(topic)
        for payload in payloads:
            await broker.publish(topic, payload)
        await recorder.wait(4)
        self.assertEqual([m.size for m in recorder.messages], [len(payload) for payload in payloads])
        replayed = await broker.replay(topic, None, 10, SIZE)
        self.assertEqual([m.size for m in replayed.messages], [len(payload) for payload in payloads])

    async def test_replays_from_the_oldest_that_is_kept_without_a_position(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        self.assertEqual(await broker.replay(topic, None, 100, SIZE), Replayed([], False))
        positions = [await broker.publish(topic, chat_payload(topic, n)) for n in range(1, 4)]
        kept = (await broker.replay(topic, None, 100, SIZE)).messages
        self.assertEqual([m.position for m in kept], positions)
        kept = (await broker.replay(topic, None, 2, SIZE)).messages
        self.assertEqual([m.position for m in kept], positions[:2])
        await self.lose_history(broker, topic)
        kept = (await broker.replay(topic, None, 100, SIZE)).messages
        self.assertEqual(
            [m.position for m in kept], [p for p in positions if p in {m.position for m in kept}]
        )

    async def test_a_position_that_is_not_of_this_history_is_lost(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        newest = await broker.publish(topic, chat_payload(topic))
        wrong = (
            Position("another", newest.seq),
            Position(newest.epoch, newest.seq + 1000),
            Position(newest.epoch, -1),
        )
        for position in wrong:
            await self.assertFailure(broker.replay(topic, position, 10, SIZE), HistoryLost)

    async def test_a_history_that_is_gone_is_lost(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        first = await broker.publish(topic, chat_payload(topic, 1))
        await broker.publish(topic, chat_payload(topic, 2))
        await self.lose_history(broker, topic)
        await self.assertFailure(broker.replay(topic, first, 10, SIZE), HistoryLost)
        self.assertEqual(await broker.replay(topic, None, 10, SIZE), Replayed([], False))

    async def test_a_repeated_key_stores_nothing_and_gives_the_first_answer(self) -> None:
        broker, recorder = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        await broker.follow(topic)
        first = await broker.publish(topic, chat_payload(topic, 1), "key")
        again = await broker.publish(topic, chat_payload(topic, 1), "key")
        self.assertEqual(first, again)
        elsewhere = await broker.publish(other, chat_payload(other, 1), "key")
        self.assertNotEqual(first, elsewhere)
        await broker.publish(topic, chat_payload(topic, 2), "key 2")
        await recorder.wait(2)
        self.assertEqual([m.event.message_id for m in recorder.messages], [1, 2])

    async def test_refuses_poison_and_stores_nothing(self) -> None:
        broker, _ = await self.started()
        topic, other = self.chat(1, 10), self.chat(1, 11)
        first = await broker.publish(topic, chat_payload(topic, 1))
        for payload in (
            b"",
            b"secret",
            b"[]",
            b"{}",
            chat_payload(other),
            notification_payload(self.user(1, 10)),
        ):
            poison = await self.assertFailure(broker.publish(topic, payload), Poison)
            self.assertNotIn("secret", str(poison))
        self.assertEqual(await broker.replay(topic, first, 10, SIZE), Replayed([], False))

    async def test_a_trace_travels_with_the_message(self) -> None:
        broker, recorder = await self.started()
        topic, trace = self.chat(1, 10), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await broker.follow(topic)
        await broker.publish(topic, chat_payload(topic), None, trace)
        await recorder.wait(1)
        self.assertEqual(recorder.messages[0].trace, trace)

    async def test_a_replay_and_live_messages_together_have_no_gap(self) -> None:
        broker, recorder = await self.started()
        topic = self.chat(1, 10)
        start = (await broker.follow(topic)).position
        publishes = [broker.publish(topic, chat_payload(topic, n)) for n in range(1, 31)]
        replayed = (await broker.replay(topic, start, 1000, SIZE)).messages
        await gatherResults(publishes)
        await recorder.wait(30)
        live = [m.position.seq for m in recorder.messages]
        self.assertEqual([m.position.seq for m in replayed], live[: len(replayed)])
        self.assertEqual(len(live), 30)

    async def test_after_stop_nothing_can_be_asked(self) -> None:
        broker, _ = await self.started()
        topic = self.chat(1, 10)
        await broker.stop()
        self.assertFalse(broker.status().ready)
        await self.assertFailure(broker.publish(topic, chat_payload(topic)), Unavailable)
        await self.assertFailure(broker.follow(topic), Unavailable)
        await self.assertFailure(broker.replay(topic, Position("x", 0), 1, SIZE), Unavailable)
