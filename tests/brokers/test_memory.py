"""The memory broker: the contract of all brokers, and its own bounds."""

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from notify import messages
from notify.brokers import memory
from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.config import Duration, Size
from notify.errors import HistoryLost
from notify.interfaces import IBroker
from notify.messages import Position
from notify.testing import Recorder, chat_payload, make_context
from notify.testing.contracts import AtomicContract, BrokerContract, SignalsContract, TextIds
from notify.topics import Topic, chat


class MemoryBrokerContract(BrokerContract, TestCase):
    async def make_broker(self) -> IBroker:
        self.clock = Clock()
        return MemoryBroker(MemorySettings(), make_context(self.clock))

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        self.clock.advance(8 * 86400)


class MemoryBrokerWithTextIds(TextIds, MemoryBrokerContract):
    pass


class MemoryLists(AtomicContract, TestCase):
    async def make_broker(self) -> IBroker:
        return MemoryBroker(MemorySettings(), make_context())


class MemoryListsWithTextIds(TextIds, MemoryLists):
    pass


class MemorySignals(SignalsContract, TestCase):
    async def make_brokers(self) -> list[IBroker]:
        return [MemoryBroker(MemorySettings(), make_context())]


class MemorySignalsWithTextIds(TextIds, MemorySignals):
    pass


class MemoryBrokerBounds(TestCase):
    def make(self, **settings: object) -> MemoryBroker:
        self.clock = Clock()
        broker = MemoryBroker(MemorySettings(**settings), make_context(self.clock))
        recorder = Recorder()
        self.successResultOf(broker.start(recorder.deliver, recorder.lost))
        return broker

    def publish(
        self, broker: MemoryBroker, topic: Topic, count: int = 1, key: str | None = None
    ) -> list[Position]:
        return [self.successResultOf(broker.publish(topic, chat_payload(topic), key)) for _ in range(count)]

    def test_keeps_no_more_messages_a_topic_than_configured(self) -> None:
        broker, topic = self.make(history_size=3), chat(1, 1)
        positions = self.publish(broker, topic, 5)
        kept = self.successResultOf(broker.replay(topic, positions[1], 10, 10**6)).messages
        self.assertEqual([m.position for m in kept], positions[2:])
        self.failureResultOf(broker.replay(topic, positions[0], 10, 10**6), HistoryLost)

    def test_parts_of_a_long_history_are_what_they_are_in_a_short_one(self) -> None:
        self.patch(memory, "_FEW", 3)
        broker, topic = self.make(), chat(1, 1)
        positions = self.publish(broker, topic, 40)
        for start in (0, 1, 17, 20, 25, 38, 39, 40):
            for limit in (1, 3, 4, 10, 100):
                after = Position(positions[0].epoch, start)
                replayed = self.successResultOf(broker.replay(topic, after, limit, 10**6))
                self.assertEqual([m.position for m in replayed.messages], positions[start : start + limit])
                self.assertEqual(replayed.more, start + limit < 40)
                before = Position(positions[0].epoch, start + 1)
                page = self.successResultOf(broker.earlier(topic, before, limit, 10**6))
                self.assertEqual(
                    [m.position for m in page.messages], positions[max(0, start - limit) : start]
                )
                self.assertEqual(page.more, start > limit)

    def test_a_part_of_a_long_history_does_not_cost_a_walk_through_it(self) -> None:
        looked: list[int] = []
        seq = memory._seq
        self.patch(memory, "_seq", lambda message: looked.append(1) or seq(message))
        broker, topic = self.make(history_size=1_000_000), chat(1, 1)
        positions = self.publish(broker, topic, 3000)
        for place in (positions[5], positions[1500], positions[-5]):
            looked.clear()
            self.successResultOf(broker.replay(topic, place, 50, 10**6))
            self.successResultOf(broker.earlier(topic, place, 50, 10**6))
            self.assertLess(len(looked), 40)

    def test_keeps_no_more_bytes_than_configured_and_drops_the_oldest_anywhere(self) -> None:
        size = len(chat_payload(chat(1, 1))) + messages.OVERHEAD
        broker = self.make(history_bytes=Size(2 * size))
        [old] = self.publish(broker, chat(1, 1))
        new = self.publish(broker, chat(1, 2), 2)
        self.failureResultOf(broker.replay(chat(1, 1), Position(old.epoch, 0), 10, 10**6), HistoryLost)
        kept = self.successResultOf(broker.replay(chat(1, 2), Position(old.epoch, 1), 10, 10**6)).messages
        self.assertEqual(len(kept), 2)
        self.assertEqual(self.successResultOf(broker.replay(chat(1, 2), new[-1], 10, 10**6)).messages, [])
        self.assertIn(f"2 messages, {2 * size} bytes", broker.status().detail)

    def test_without_a_history_it_keeps_nothing_of_topics_that_nobody_follows(self) -> None:
        broker = self.make(history_size=0)
        for n in range(10):
            self.publish(broker, chat(1, n))
        self.assertEqual(broker._histories, {})

    def test_keeps_nothing_longer_than_configured_while_its_newest_position_still_resumes(self) -> None:
        broker, topic = self.make(history_age=Duration(60)), chat(1, 1)
        first, last = self.publish(broker, topic, 2)
        self.clock.advance(60)
        self.failureResultOf(broker.replay(topic, first, 10, 10**6), HistoryLost)
        self.assertEqual(self.successResultOf(broker.replay(topic, last, 10, 10**6)).messages, [])
        [new] = self.publish(broker, topic)
        newer = self.successResultOf(broker.replay(topic, last, 10, 10**6)).messages
        self.assertEqual([m.position for m in newer], [new])

    def test_a_followed_topic_keeps_its_newest_position_when_its_messages_are_gone(self) -> None:
        broker, topic = self.make(history_age=Duration(60)), chat(1, 1)
        [last] = self.publish(broker, topic)
        self.assertEqual(self.successResultOf(broker.follow(topic)).position, last)
        self.clock.advance(61)
        self.assertEqual(self.successResultOf(broker.replay(topic, last, 1, 10**6)).messages, [])
        broker.unfollow(topic)
        self.assertEqual(broker._histories, {})

    def test_a_topic_without_messages_is_followed_from_a_position_that_resumes(self) -> None:
        broker, topic = self.make(history_age=Duration(60)), chat(1, 1)
        self.publish(broker, chat(1, 2), 2)
        self.assertEqual(self.successResultOf(broker.follow(topic)).position.seq, 0)
        broker.unfollow(topic)
        self.clock.advance(61)
        self.publish(broker, chat(1, 2))
        begin = self.successResultOf(broker.follow(topic)).position
        broker.unfollow(topic)
        self.publish(broker, chat(1, 2))
        self.assertEqual(self.successResultOf(broker.replay(topic, begin, 10, 10**6)).messages, [])
        self.publish(broker, topic)
        self.assertEqual(len(self.successResultOf(broker.replay(topic, begin, 10, 10**6)).messages), 1)
        self.clock.advance(61)
        self.failureResultOf(broker.replay(topic, begin, 10, 10**6), HistoryLost)

    def test_more_than_a_whole_resumption_may_be_is_not_gathered(self) -> None:
        broker, topic = self.make(), chat(1, 1)
        self.publish(broker, topic, 5)
        for limit, given in ((5, (5, False)), (4, (0, True))):
            replayed = self.successResultOf(broker.replay(topic, None, limit, 10**6, whole=True))
            self.assertEqual((len(replayed.messages), replayed.more), given)

    def test_without_history_nothing_is_kept_but_everything_is_delivered(self) -> None:
        broker, topic = self.make(history_size=0), chat(1, 1)
        self.publish(broker, topic, 3)
        self.assertIn("0 messages, 0 bytes", broker.status().detail)

    def test_bookkeeping_stays_in_proportion_to_what_is_kept(self) -> None:
        broker, topic = self.make(history_size=2), chat(1, 1)
        self.publish(broker, topic, 5000)
        self.assertLess(len(broker._log), 1100)

    def test_an_idempotency_key_is_forgotten_after_the_window(self) -> None:
        broker, topic = self.make(duplicate_window=Duration(120)), chat(1, 1)
        [first] = self.publish(broker, topic, 1, "key")
        self.clock.advance(119)
        self.assertEqual(self.publish(broker, topic, 1, "key"), [first])
        self.clock.advance(1)
        self.assertNotEqual(self.publish(broker, topic, 1, "key"), [first])
        self.assertEqual(len(broker._answers), 1)

    def test_no_more_keys_are_remembered_than_memory_is_meant_to_hold(self) -> None:
        self.patch(memory, "MAX_KEYS", 10)
        broker, topic = self.make(), chat(1, 1)
        for number in range(50):
            self.publish(broker, topic, 1, f"key {number}")
        self.assertLessEqual(len(broker._answers), 11)
        [last] = self.publish(broker, topic, 1, "key 49")
        self.assertEqual(last.seq, 50)

    def test_a_new_broker_has_a_new_epoch(self) -> None:
        one = MemoryBroker(MemorySettings(), make_context(seed=1))
        two = MemoryBroker(MemorySettings(), make_context(seed=2))
        self.assertNotEqual(one._epoch, two._epoch)
