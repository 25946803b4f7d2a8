"""The contract of a broker that knows positions and pages (:class:`notify.interfaces.IPages`). Other brokers skip these tests by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, gatherResults
from twisted.trial.unittest import SkipTest

from notify.errors import HistoryLost, Unavailable
from notify.interfaces import IBroker, IPages, pages_of
from notify.messages import Earlier, Position, parse_event
from notify.testing.contracts.ids import IntegerIds
from notify.testing.fakes import chat_payload, event_payload, notification_payload
from notify.testing.recorder import Recorder
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


#: a size limit in bytes that no page here reaches
SIZE = 2**20


class PagesContract(IntegerIds, Suite):
    """A part of :class:`~notify.testing.contracts.BrokerContract`."""

    async def started(self) -> tuple[IBroker, Recorder]:
        """A running broker, and the recorder of what it delivers."""
        raise NotImplementedError

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        """Discard all stored messages of a topic."""
        raise NotImplementedError

    async def paged(self) -> tuple[IBroker, IPages, Recorder]:
        """A running broker, the same as an ``IPages``, and the recorder of what it delivers."""
        broker, recorder = await self.started()
        if not IPages.providedBy(broker):
            raise SkipTest("the broker does not provide IPages")
        return broker, pages_of(broker), recorder

    async def test_the_newest_position_is_that_of_what_was_accepted_last(self) -> None:
        broker, pages, _ = await self.paged()
        topic, other = self.chat(1, 10), self.user(1, 10)
        for n in range(1, 4):
            sent = await broker.publish(topic, chat_payload(topic, n))
            self.assertEqual(await pages.newest(topic), sent)
        sent = await broker.publish(topic, event_payload(topic, 5, "edited", None))
        told = await broker.publish(other, notification_payload(other, 7))
        self.assertEqual(await pages.newest(topic), sent)
        self.assertEqual(await pages.newest(other), told)

    async def test_the_newest_position_of_a_topic_is_the_same_while_it_is_followed(self) -> None:
        broker, pages, recorder = await self.paged()
        topic = self.chat(1, 10)
        before = await broker.publish(topic, chat_payload(topic, 1))
        self.assertEqual((await broker.follow(topic)).position, before)
        self.assertEqual(await pages.newest(topic), before)
        after = await broker.publish(topic, chat_payload(topic, 2))
        self.assertEqual(await pages.newest(topic), after)
        await recorder.wait(1)
        broker.unfollow(topic)
        self.assertEqual(await pages.newest(topic), after)

    async def test_asking_for_a_position_follows_nothing(self) -> None:
        broker, pages, recorder = await self.paged()
        topic, marker = self.chat(1, 10), self.chat(1, 99)
        await pages.newest(topic)
        await broker.follow(marker)
        await broker.publish(topic, chat_payload(topic, 1))
        await broker.publish(marker, chat_payload(marker, 2))
        await recorder.wait(1)
        self.assertEqual([m.topic for m in recorder.messages], [marker])

    async def test_nothing_is_missed_from_the_newest_position_on_also_of_a_topic_without_messages(
        self,
    ) -> None:
        broker, pages, _ = await self.paged()
        topic, noise = self.chat(1, 10), self.chat(1, 11)
        for n in range(5):
            await broker.publish(noise, chat_payload(noise, n))
        for _ in range(2):  # in the first round it has none
            position = await pages.newest(topic)
            nothing = await broker.replay(topic, position, 10, SIZE)
            self.assertEqual(nothing.messages, [])
            sent = [await broker.publish(topic, chat_payload(topic, n)) for n in range(3)]
            replayed = await broker.replay(topic, position, 10, SIZE)
            self.assertEqual([m.position for m in replayed.messages], sent)

    async def test_the_newest_position_can_be_gone_on_from_though_the_history_is_gone(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        for n in range(3):
            await broker.publish(topic, chat_payload(topic, n))
        await self.lose_history(broker, topic)
        position = await pages.newest(topic)
        sent = await broker.publish(topic, chat_payload(topic, 4))
        replayed = await broker.replay(topic, position, 10, SIZE)
        self.assertEqual([m.position for m in replayed.messages], [sent])

    async def test_many_ask_for_positions_at_once_and_each_gets_its_own(self) -> None:
        broker, pages, _ = await self.paged()
        topics = [self.chat(workspace, n) for workspace in (1, 2) for n in range(10, 30)]
        sent = {topic: await broker.publish(topic, chat_payload(topic, 1)) for topic in topics}
        asked = [pages.newest(topic) for topic in [*topics, *topics]]
        given_up = pages.newest(topics[0]).addErrback(lambda failure: failure.trap(CancelledError))
        given_up.cancel()
        self.assertEqual(await gatherResults(asked), [sent[topic] for topic in [*topics, *topics]])
        await given_up

    async def test_after_stop_no_position_is_told_and_no_page(self) -> None:
        broker, pages, _ = await self.paged()
        await broker.stop()
        await self.assertFailure(pages.newest(self.chat(1, 10)), Unavailable)
        await self.assertFailure(pages.earlier(self.chat(1, 10), None, 1, SIZE), Unavailable)

    # --- earlier --------------------------------------------------------------------------------------------

    async def talk(self, broker: IBroker, topic: Topic, count: int, noise: int = 0) -> list[Position]:
        """Publish messages 1, 2, … of a topic, with ``noise`` messages of others between any two."""
        other = self.chat(1, 99)
        sent = []
        for n in range(1, count + 1):
            sent.append(await broker.publish(topic, chat_payload(topic, n)))
            for k in range(noise):
                await broker.publish(other, chat_payload(other, k))
        return sent

    async def test_the_newest_page_is_the_last_messages_oldest_first(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        sent = await self.talk(broker, topic, 7, noise=2)
        for limit in (1, 3, 6, 7, 100):
            page = await pages.earlier(topic, None, limit, SIZE)
            self.assertEqual([m.position for m in page.messages], sent[-limit:], limit)
            self.assertEqual(page.more, limit < 7, limit)
            self.assertEqual((page.epoch, page.last), (sent[-1].epoch, sent[-1].seq))
            self.assertEqual(page.first, sent[-limit:][0].seq)
        self.assertEqual(page.messages[0].event, parse_event(topic, chat_payload(topic, 1)))
        self.assertEqual({m.topic for m in page.messages}, {topic})

    async def test_a_page_before_a_position_ends_there_whatever_is_at_the_position(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        sent = await self.talk(broker, topic, 6, noise=1)
        for index in range(6):
            page = await pages.earlier(topic, sent[index], 2, SIZE)
            self.assertEqual([m.position for m in page.messages], sent[max(0, index - 2) : index], index)
            self.assertEqual(page.more, index > 2)
        between = Position(sent[3].epoch, sent[3].seq + 1)  # the number of a message of another topic
        page = await pages.earlier(topic, between, 2, SIZE)
        self.assertEqual([m.position for m in page.messages], sent[2:4])
        for newer in (sent[-1].seq + 1, sent[-1].seq + 1000, 2**63 - 1):
            page = await pages.earlier(topic, Position(sent[-1].epoch, newer), 2, SIZE)
            self.assertEqual([m.position for m in page.messages], sent[-2:])
        for nothing in (0, -1, -(2**63)):
            page = await pages.earlier(topic, Position(sent[-1].epoch, nothing), 2, SIZE)
            self.assertEqual(page, Earlier([], False, sent[-1].epoch))

    async def test_the_whole_history_can_be_paged_through_backwards(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        sent = await self.talk(broker, topic, 60, noise=1)
        for limit in (1, 7, 25):
            seen: list[Position] = []
            before, more = None, True
            while more:
                page = await pages.earlier(topic, before, limit, SIZE)
                self.assertTrue(page.messages)
                seen = [m.position for m in page.messages] + seen
                before, more = Position(page.epoch, page.first), page.more
            self.assertEqual(seen, sent, limit)

    async def test_a_page_is_bounded_in_bytes_but_has_at_least_one_message(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        payloads = [chat_payload(topic, n, "x" * 1000) for n in range(1, 5)]
        for payload in payloads:
            await broker.publish(topic, payload)
        size = len(payloads[0])
        for bound, expected in (
            (0, [4]),
            (2 * size - 1, [4]),
            (2 * size, [3, 4]),
            (4 * size, [1, 2, 3, 4]),
        ):
            page = await pages.earlier(topic, None, 100, bound)
            self.assertEqual([m.event.message_id for m in page.messages], expected, bound)
            self.assertEqual(page.more, len(expected) < 4, bound)

    async def test_pages_of_large_messages_do_not_leave_any_out(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        for n in range(1, 41):
            await broker.publish(topic, chat_payload(topic, n, "x" * 30_000))
        seen: list[object] = []
        before, more = None, True
        while more:
            page = await pages.earlier(topic, before, 100, 65_000)
            self.assertLess(len(page.messages), 3)
            seen = [m.event.message_id for m in page.messages] + seen
            before, more = Position(page.epoch, page.first), page.more
        self.assertEqual(seen, list(range(1, 41)))

    async def test_pages_have_a_chats_events_too_and_tenants_apart(self) -> None:
        broker, pages, _ = await self.paged()
        topic, other, user = self.chat(1, 10), self.chat(2, 10), self.user(1, 10)
        payloads = [chat_payload(topic, 1), event_payload(topic, 2, "edited", {"content": "x"})]
        for payload in payloads:
            await broker.publish(topic, payload)
        await broker.publish(other, chat_payload(other, 3))
        await broker.publish(user, notification_payload(user, 4))
        page = await pages.earlier(topic, None, 10, SIZE)
        self.assertEqual([m.event for m in page.messages], [parse_event(topic, one) for one in payloads])
        self.assertEqual([m.size for m in page.messages], [len(one) for one in payloads])
        for one, id in ((other, "message_id"), (user, "notification_id")):
            page = await pages.earlier(one, None, 10, SIZE)
            self.assertEqual([getattr(m.event, id) for m in page.messages], [3 if one is other else 4])

    async def test_a_topic_without_messages_has_an_empty_page(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        epoch = (await broker.publish(self.chat(1, 11), chat_payload(self.chat(1, 11), 1))).epoch
        self.assertEqual(await pages.earlier(topic, None, 10, SIZE), Earlier([], False, epoch))
        self.assertEqual(await pages.earlier(topic, Position(epoch, 5), 10, SIZE), Earlier([], False, epoch))

    async def test_what_is_kept_no_more_is_not_there_and_no_fault(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        [*_, last] = await self.talk(broker, topic, 3)
        await self.lose_history(broker, topic)
        self.assertEqual((await pages.earlier(topic, last, 10, SIZE)).messages, [])
        sent = await broker.publish(topic, chat_payload(topic, 4))
        page = await pages.earlier(topic, None, 10, SIZE)
        self.assertEqual(([m.position for m in page.messages], page.more), ([sent], False))

    async def test_a_page_before_a_position_of_another_history_is_lost(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        [sent] = await self.talk(broker, topic, 1)
        for epoch in ("another", ""):
            await self.assertFailure(pages.earlier(topic, Position(epoch, sent.seq), 10, SIZE), HistoryLost)

    async def test_a_page_that_is_given_up_disturbs_no_other(self) -> None:
        broker, pages, _ = await self.paged()
        topic = self.chat(1, 10)
        sent = await self.talk(broker, topic, 3)
        given_up = pages.earlier(topic, None, 2, SIZE)
        other = pages.earlier(topic, None, 2, SIZE)
        given_up.addErrback(lambda failure: failure.trap(CancelledError))
        given_up.cancel()
        self.assertEqual([m.position for m in (await other).messages], sent[-2:])
        await given_up

    async def test_pages_of_a_topic_that_is_followed_and_talks_go_on_being_whole(self) -> None:
        broker, pages, recorder = await self.paged()
        topic = self.chat(1, 10)
        await broker.follow(topic)
        publishes = [broker.publish(topic, chat_payload(topic, n)) for n in range(1, 41)]
        asked = [pages.earlier(topic, None, 5, SIZE) for _ in range(4)]
        sent = await gatherResults(publishes)
        for page in await gatherResults(asked):
            got = [m.position for m in page.messages]
            self.assertEqual(got, [one for one in sent if page.first <= one.seq <= page.last])
            self.assertLessEqual(len(got), 5)
            if got and got[0] != sent[0] and len(got) < 5:
                self.assertTrue(page.more)
        await recorder.wait(40)
