"""What a broker must do that tells where topics stand (:class:`notify.interfaces.IPages`); others skip this by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, gatherResults
from twisted.trial.unittest import SkipTest

from notify.errors import Unavailable
from notify.interfaces import IBroker, IPages, pages_of
from notify.testing.contracts.ids import IntegerIds
from notify.testing.fakes import chat_payload, event_payload, notification_payload
from notify.testing.recorder import Recorder
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


#: bytes, more than any page here has
SIZE = 2**20


class PagesContract(IntegerIds, Suite):
    """A part of :class:`~notify.testing.contracts.BrokerContract`."""

    async def started(self) -> tuple[IBroker, Recorder]:
        """A broker that runs, and what it delivers to."""
        raise NotImplementedError

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        """Throw away all that is kept of a topic."""
        raise NotImplementedError

    async def paged(self) -> tuple[IBroker, IPages, Recorder]:
        """A broker that runs, what it provides besides, and what it delivers to."""
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
        for _ in range(2):  # at first it has none
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

    async def test_after_stop_no_position_is_told(self) -> None:
        broker, pages, _ = await self.paged()
        await broker.stop()
        await self.assertFailure(pages.newest(self.chat(1, 10)), Unavailable)
