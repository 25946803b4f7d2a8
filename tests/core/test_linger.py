"""Topics whose last member has left linger: some of them, and for some time."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits
from notify.core import linger
from notify.core.linger import Lingering
from notify.messages import Position
from notify.testing import chat_payload
from notify.topics import Topic, chat
from tests.support.member import TOPIC, Member
from tests.support.world import World


class Times(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.left = Clock(), list[Topic]()
        self.linger = 60.0
        self.lingering = Lingering(
            self.left.append, lambda: self.linger, self.clock.callLater, self.clock.seconds
        )

    def test_each_goes_when_its_time_is_over(self) -> None:
        for n in range(3):
            self.lingering.add(chat(1, n))
            self.clock.advance(1)
        self.lingering.discard(chat(1, 1))
        self.clock.pump([8] * 7 + [0.5])
        self.assertEqual(self.left, [])
        self.clock.advance(0.5)
        self.assertEqual(self.left, [chat(1, 0)])
        self.clock.advance(2)
        self.assertEqual(self.left, [chat(1, 0), chat(1, 2)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_time_holds_for_those_that_linger_already(self) -> None:
        self.linger = 3600.0
        self.lingering.add(chat(1, 1))
        self.clock.advance(5)
        self.lingering.add(chat(1, 2))
        self.linger = 1.0
        self.clock.advance(5)
        self.assertEqual(self.left, [chat(1, 1), chat(1, 2)])

    def test_they_are_bounded_and_who_left_first_goes_first(self) -> None:
        self.patch(linger, "MOST", 2)
        for n in range(4):
            self.lingering.add(chat(1, n))
        self.assertEqual((self.left, len(self.lingering)), ([chat(1, 0), chat(1, 1)], 2))
        self.lingering.clear()
        self.assertEqual((len(self.left), len(self.lingering)), (4, 0))


class Topics(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.member = Member(self.world, "a").subscribe()

    def publish(self) -> int:
        return self.world.publish(TOPIC, chat_payload(TOPIC))

    def leave(self) -> None:
        self.world.dispatcher.forget(self.member.connection)

    def test_who_comes_back_in_time_asks_the_broker_for_nothing(self) -> None:
        seen = self.publish()
        self.world.turn()
        self.leave()
        self.publish()
        self.world.clock.advance(59)
        back = Member(self.world, "b").subscribe(Position(self.world.broker._epoch, seen))
        self.assertEqual((back.joined.recovered, back.seqs()), (True, [seen + 1]))
        self.assertEqual((self.world.broker.follows, self.world.broker.replays), (1, 0))
        self.world.clock.advance(120)
        self.publish()
        self.world.turn()
        self.assertEqual(back.seqs(), [seen + 2])

    def test_it_counts_as_followed_until_its_time_is_over(self) -> None:
        self.publish()
        self.leave()
        self.assertEqual(self.world.sample("notify_topics"), 1)
        self.world.clock.advance(61)
        self.assertEqual(self.world.sample("notify_topics"), 0)
        self.assertEqual((self.world.broker._followed, self.world.dispatcher._feeds), (set(), {}))
        self.assertEqual(self.world.dispatcher._recents.count, 0)

    def test_one_that_is_lost_goes(self) -> None:
        self.publish()
        self.world.turn()
        self.leave()
        self.world.broker.unfollow(TOPIC)
        self.world.dispatcher.lost(TOPIC)
        self.assertEqual((self.world.sample("notify_topics"), self.world.dispatcher._recents.count), (0, 0))
        self.world.clock.advance(120)
        self.assertEqual(self.world.sample("notify_topics"), 0)

    def test_no_time_is_none(self) -> None:
        self.world.reload(limits=Limits(linger=Duration(0)))
        self.leave()
        self.assertEqual(self.world.broker._followed, set())

    def test_nothing_lingers_where_the_server_leaves(self) -> None:
        other = Member(self.world, "b").subscribe(topic=chat(1, 11))
        self.leave()
        self.world.dispatcher.wind_down()
        self.assertEqual(self.world.broker._followed, {chat(1, 11)})
        self.world.dispatcher.forget(other.connection)
        self.assertEqual(self.world.broker._followed, set())
