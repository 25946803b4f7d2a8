"""Followed topics, without NATS and with a fake clock."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream import tail
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.stored import Newest, Page, Stored
from notify.brokers.jetstream.tail import Tail
from notify.errors import HistoryLost, Unavailable
from notify.messages import Message
from notify.observe.metrics import Metrics
from notify.testing import chat_payload
from notify.topics import Topic, chat

TOPIC, OTHER = chat(1, 10), chat(1, 11)
TOPIC_KEY = TOPIC.subject.encode()
BLOCK = b"NATS/1.0\r\n\r\n"


class FakeStream:
    """What a reader would read. With ``away`` it fails, and with a list in ``waiting`` it answers late."""

    epoch = "e1"

    def __init__(self) -> None:
        self.stored: dict[str, list[int]] = {}
        self.oldest = 1
        self.holes = Holes()
        self.page = 1_000_000
        self.away = False
        self.stale = 0
        self.waiting: list[Deferred[None]] | None = None
        self.lookups: list[list[str]] = []
        self.reads: list[tuple[str, int]] = []

    def put(self, topic: Topic, seq: int) -> None:
        self.stored.setdefault(topic.subject, []).append(seq)

    async def _wait(self) -> None:
        if self.waiting is not None:
            waiting: Deferred[None] = Deferred()
            self.waiting.append(waiting)
            await waiting

    def answer(self) -> None:
        waiting, self.waiting = self.waiting or [], None
        for one in waiting:
            one.callback(None)

    async def first(self) -> int:
        await self._wait()
        if self.away:
            raise Unavailable("away")
        return self.oldest

    async def newest(self, subjects: list[str], since: int = 1, at_least: int = 0) -> Newest:
        self.lookups.append(subjects)
        await self._wait()
        if self.away:
            raise Unavailable("away")
        last = {s: max(self.stored[s]) for s in subjects if self.stored.get(s)}
        return Newest({s: n for s, n in last.items() if n >= since}, max([0, *(n for n in last.values())]))

    async def after(
        self,
        subject: str,
        seq: int,
        *,
        checked: int = 0,
        at_least: int = 0,
        promised: int = 0,
        successor: int = 0,
    ) -> Page:
        self.reads.append((subject, seq))
        await self._wait()
        if self.away:
            raise Unavailable("away")
        if self.oldest > max(seq, checked) + 1 and seq not in self.stored.get(subject, []):
            raise HistoryLost("gone")
        after = [n for n in self.stored.get(subject, []) if n > seq]
        begin = max(seq, checked, successor if after[:1] == [successor] else 0)
        if after and self.holes.between(begin, after[-1]):
            raise HistoryLost("gone")
        page, of = after[: self.page], OTHER if subject == OTHER.subject else TOPIC
        return Page([Stored(n, payload(n, of), "") for n in page], len(after) - len(page), len(after))


class FakeSource:
    def __init__(self) -> None:
        self.topics: list[Topic] = []

    def add(self, topic: Topic) -> None:
        self.topics.append(topic)

    def remove(self, topic: Topic) -> None:
        self.topics.remove(topic)


def payload(seq: int, topic: Topic = TOPIC) -> bytes:
    return chat_payload(topic, seq)


class TailCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.stream, self.source = Clock(), FakeStream(), FakeSource()
        self.delivered: list[int] = []
        self.lost: list[Topic] = []
        self.poison: list[int] = []
        self.suspicions = 0
        self.tail = Tail(
            self.stream,
            self.clock,
            Metrics(),
            lambda topic, stored, reason: self.poison.append(stored.seq),
            self.suspect,
        )
        self.tail.source = self.source
        self.tail.deliver = self.deliver
        self.tail.lost = self.lost.append
        self.tail.online(True)

    def suspect(self) -> None:
        self.suspicions += 1

    def deliver(self, message: Message) -> None:
        self.delivered.append(message.position.seq)

    def follow(self, topic: Topic = TOPIC) -> int:
        following = self.tail.follow(topic)
        self.clock.advance(0)
        return self.successResultOf(following).position.seq

    def live(
        self, seq: int, last: int, topic: Topic = TOPIC, data: bytes | None = None, block: bytes = BLOCK
    ) -> None:
        state = self.tail.states.get(topic.subject.encode())
        if state is not None:
            self.tail.arrived(state, seq, last, payload(seq, topic) if data is None else data, block)

    def send(self, seq: int, last: int) -> None:
        """Store a message, and deliver it live."""
        self.stream.put(TOPIC, seq)
        self.live(seq, last)


class Following(TailCase):
    def test_those_that_come_together_are_looked_up_together(self) -> None:
        following = [self.tail.follow(chat(1, n)) for n in range(1500)]
        self.clock.advance(0)
        self.assertEqual([len(subjects) for subjects in self.stream.lookups], [1023, 477])
        self.assertEqual({self.successResultOf(one).position.seq for one in following}, {0})

    def test_nothing_is_delivered_before_the_answer_and_all_that_came_meanwhile_after_it(self) -> None:
        self.stream.put(TOPIC, 3)
        self.stream.waiting = []
        following = self.tail.follow(TOPIC)
        self.clock.advance(0)
        self.live(2, 0)
        self.live(3, 2)
        self.send(5, 3)
        self.stream.stored[TOPIC.subject].remove(5)  # the answer was already on its way
        self.assertEqual(self.delivered, [])
        self.stream.answer()
        self.assertEqual(self.successResultOf(following).position.seq, 3)
        self.assertEqual(self.delivered, [5])

    def test_a_broker_that_is_away_means_not_followed(self) -> None:
        self.stream.away = True
        following = self.tail.follow(TOPIC)
        self.clock.advance(0)
        self.failureResultOf(following, Unavailable)
        self.assertEqual((self.tail.states, self.source.topics), ({}, []))

    def test_unfollowing_ends_delivery_also_in_the_middle_of_a_read(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.stream.put(TOPIC, 2)
        self.stream.waiting = []
        self.live(2, 1)
        self.tail.unfollow(TOPIC)
        self.stream.answer()
        self.assertEqual((self.delivered, self.source.topics), ([], []))

    def test_following_again_while_the_first_lookup_is_under_way(self) -> None:
        self.stream.waiting = []
        first = self.tail.follow(TOPIC)
        self.clock.advance(0)
        self.tail.unfollow(TOPIC)
        second = self.tail.follow(TOPIC)
        self.stream.put(TOPIC, 4)
        self.stream.answer()
        self.assertEqual(self.successResultOf(first).position.seq, 4)
        self.assertEqual(self.successResultOf(second).position.seq, 4)
        self.live(5, 4)
        self.assertEqual(self.delivered, [5])


class Gaps(TailCase):
    def test_in_order_messages_are_delivered_without_a_read(self) -> None:
        self.follow()
        for seq, last in ((2, 0), (5, 2), (6, 5)):
            self.send(seq, last)
        self.assertEqual((self.delivered, self.stream.reads), ([2, 5, 6], []))

    def test_a_gap_is_read_and_what_comes_meanwhile_waits_behind_it(self) -> None:
        self.follow()
        self.send(1, 0)
        self.stream.put(TOPIC, 2)
        self.stream.waiting = []
        self.stream.put(TOPIC, 3)
        self.live(3, 2)
        self.send(4, 3)
        self.stream.stored[TOPIC.subject].remove(4)  # the replica that answers does not have it yet
        self.assertEqual(self.delivered, [1])
        self.stream.answer()
        self.assertEqual(self.delivered, [1, 2, 3, 4])
        self.assertEqual(len(self.stream.reads), 1)

    def test_what_was_read_and_then_arrives_is_not_delivered_again_and_is_no_cause_for_suspicion(
        self,
    ) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.stream.put(TOPIC, 2)
        self.live(2, 1)
        self.live(1, 0)
        self.live(2, 1)
        self.assertEqual((self.delivered, self.suspicions), ([1, 2], 0))

    def test_a_number_that_was_delivered_live_and_comes_again_is_suspicious(self) -> None:
        self.follow()
        self.send(1, 0)
        self.live(1, 0)
        self.assertEqual((self.delivered, self.suspicions), ([1], 1))

    def test_a_topic_whose_older_messages_aged_out_goes_on(self) -> None:
        self.stream.put(TOPIC, 3)
        self.follow()
        self.stream.stored[TOPIC.subject] = []
        self.stream.oldest = 4
        self.send(9, 0)
        self.assertEqual((self.delivered, self.lost), ([9], []))

    def test_what_cannot_be_shown_to_be_whole_is_lost_and_not_followed(self) -> None:
        self.stream.put(TOPIC, 3)
        self.follow()
        self.stream.stored[TOPIC.subject] = []
        self.stream.oldest = 8
        self.send(9, 0)
        self.assertEqual((self.delivered, self.lost), ([], [TOPIC]))
        self.live(10, 9)
        self.assertEqual((self.delivered, self.source.topics), ([], []))

    def test_a_number_at_which_the_stream_had_nothing_waits_for_a_comparison(self) -> None:
        self.stream.put(OTHER, 20)
        self.follow(OTHER)
        self.follow()
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0)))
        self.assertEqual(self.tail.states[TOPIC.subject.encode()].checked, 20)
        self.stream.put(TOPIC, 18)
        self.live(18, 0)
        self.assertEqual((self.delivered, self.suspicions), ([], 1))
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0)))
        self.assertEqual(self.delivered, [18])

    def test_what_comes_behind_such_a_number_is_not_taken_for_the_next_whatever_brings_it(self) -> None:
        for last in (18, -1):  # a source that says which message came before, and one that cannot
            self.setUp()
            self.stream.put(OTHER, 20)
            self.follow(OTHER)
            self.follow()
            self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0)))
            self.stream.put(TOPIC, 18)
            self.live(18, 0 if last > 0 else -1)
            self.stream.put(TOPIC, 21)
            self.live(21, last)
            self.clock.advance(0)
            self.assertEqual((self.delivered, self.lost), ([18, 21], []))

    def test_a_first_message_may_have_had_others_before_it(self) -> None:
        for oldest, expected in ((1, ([9], [])), (8, ([], [TOPIC]))):
            self.setUp()
            self.follow()
            self.follow(OTHER)
            self.stream.oldest = oldest
            self.stream.put(TOPIC, 9)
            self.live(9, 0)
            self.assertEqual((self.delivered, self.lost), expected)
        # Topics whose first messages come together share one request.
        self.setUp()
        self.follow()
        self.follow(OTHER)
        self.stream.waiting = []
        self.live(3, 0)
        self.live(4, 0, OTHER)
        self.live(5, 3)
        self.assertEqual((self.delivered, len(self.stream.waiting)), ([], 1))
        self.stream.answer()
        self.assertEqual((self.delivered, self.stream.reads), ([3, 5, 4], []))

    def test_the_same_for_one_that_came_while_the_broker_was_away(self) -> None:
        for oldest, expected in ((1, ([9], [])), (8, ([], [TOPIC]))):
            self.setUp()
            self.follow()
            self.tail.online(False)
            self.stream.oldest = oldest
            self.stream.put(TOPIC, 9)
            self.live(9, 0)
            self.tail.online(True)
            self.assertEqual((self.delivered, self.lost), expected)

    def test_a_deleted_message_is_no_gap(self) -> None:
        self.stream.put(TOPIC, 3)
        self.stream.put(TOPIC, 5)
        self.follow()
        self.stream.stored[TOPIC.subject].remove(5)
        self.stream.holes = Holes([5, 6])
        self.send(7, 3)
        self.send(8, 7)
        self.assertEqual((self.delivered, self.lost), ([7, 8], []))

    def test_a_read_is_tried_until_the_stream_can_be_read_again(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.stream.away = True
        self.send(2, 1)
        for _ in range(10):
            self.clock.advance(2)
        self.assertEqual(self.delivered, [])
        self.stream.away = False
        self.clock.advance(2)
        self.assertEqual(self.delivered, [1, 2])

    def test_while_the_broker_is_away_nothing_is_read_and_on_return_it_is(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.tail.online(False)
        self.stream.away = True
        self.send(2, 1)
        reads = len(self.stream.reads)
        self.clock.advance(60)
        self.assertEqual(len(self.stream.reads), reads)
        self.stream.away = False
        self.tail.online(True)
        self.assertEqual(self.delivered, [1, 2])

    def test_more_than_can_be_held_back_is_read_instead(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.stream.waiting = []
        for seq in range(2, 1200):
            self.send(seq, seq - 1)
        self.stream.answer()
        self.clock.pump([0] * 3)
        self.assertEqual(self.delivered, list(range(1, 1200)))
        self.assertEqual(self.tail._held, 0)

    def test_the_bytes_that_are_held_back_have_a_bound_over_all_topics(self) -> None:
        self.patch(tail, "_HELD_BYTES", 1000)
        self.follow()
        self.follow(OTHER)
        self.stream.put(TOPIC, 1)
        self.stream.put(OTHER, 2)
        self.stream.waiting = []
        for seq in range(4, 40, 2):
            self.send(seq, seq - 2 if seq > 4 else 1)
            self.stream.put(OTHER, seq + 1)
            self.live(seq + 1, seq - 1 if seq > 4 else 2, OTHER)
            self.assertLessEqual(self.tail._held, 1000)
        self.stream.answer()
        self.clock.pump([0] * 3)
        self.assertEqual(sorted(self.delivered), [1, 2, *range(4, 40)])
        self.assertEqual(self.tail._held, 0)

    def test_the_headers_of_what_is_held_back_count(self) -> None:
        self.patch(tail, "_HELD_BYTES", 10_000)
        self.follow()
        self.stream.waiting = []
        for seq in range(2, 30):
            self.stream.put(TOPIC, seq)
            self.live(seq, seq - 1, block=b"NATS/1.0\r\nX: %s\r\n\r\n" % (b"x" * 3000))
            self.assertLessEqual(sum(len(one.block) for one in self.tail.states[TOPIC_KEY].held), 10_000)
        self.stream.answer()
        self.clock.pump([0] * 3)
        self.assertEqual(self.delivered, list(range(2, 30)))
        self.assertEqual(self.tail._held, 0)

    def test_a_long_gap_is_mended_page_by_page_one_a_turn(self) -> None:
        self.follow()
        self.stream.page = 10
        for seq in range(1, 36):
            self.stream.put(TOPIC, seq)
        self.send(36, 35)
        self.assertEqual(self.delivered, list(range(1, 11)))
        self.clock.advance(0)
        self.assertEqual(self.delivered, list(range(1, 37)))

    def test_a_topic_that_is_too_far_behind_is_lost(self) -> None:
        self.patch(tail, "_BEHIND", 20)
        self.follow()
        self.stream.page = 10
        for seq in range(1, 32):
            self.stream.put(TOPIC, seq)
        self.send(32, 31)
        self.assertEqual((self.delivered, self.lost), ([], [TOPIC]))

    def test_a_number_that_is_missing_elsewhere_takes_nothing_from_a_topic(self) -> None:
        self.follow(OTHER)
        self.stream.put(OTHER, 6)
        self.live(6, 0, OTHER)
        self.follow()
        self.stream.holes = Holes([4])  # of any topic; the check reaches past it
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0)))
        self.stream.put(TOPIC, 7)
        self.send(8, 7)
        self.assertEqual((self.delivered, self.lost), ([6, 7, 8], []))

    def test_a_number_that_is_missing_inside_a_gap_is_told_to_that_topic_alone(self) -> None:
        self.follow(OTHER)
        self.follow()
        self.stream.holes = Holes([4])
        self.stream.put(TOPIC, 5)
        self.send(8, 5)
        self.stream.put(OTHER, 9)
        self.live(9, 0, OTHER)
        self.assertEqual((self.delivered, self.lost), ([9], [TOPIC]))

    def test_a_number_that_went_missing_while_nothing_was_heard_may_be_of_any_topic(self) -> None:
        self.follow()
        self.stream.holes = Holes([4])
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0)))
        self.assertEqual(self.lost, [])
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(0.0, cut=True)))
        self.assertEqual(self.lost, [TOPIC])

    def test_a_topic_that_may_have_lost_its_newest_begins_behind_that(self) -> None:
        self.stream.put(TOPIC, 3)
        self.stream.put(OTHER, 9)
        self.stream.holes = Holes([2, 5])
        following = [self.tail.follow(TOPIC), self.tail.follow(OTHER)]
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(one).position.seq for one in following], [5, 9])
        self.send(10, 3)
        self.assertEqual((self.delivered, self.stream.reads), ([10], []))

    def test_a_topic_without_messages_begins_as_far_as_was_looked_whatever_is_missing_there(self) -> None:
        self.stream.put(OTHER, 9)
        self.stream.holes = Holes([5])
        self.stream.oldest = 6  # what the topic had after the missing number has aged out
        following = [self.tail.follow(TOPIC), self.tail.follow(OTHER)]
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(one).position.seq for one in following], [9, 9])

    def test_poison_is_skipped_and_reported(self) -> None:
        self.follow()
        self.live(1, 0, data=b"rubbish")
        self.live(2, 1)
        self.assertEqual((self.delivered, self.poison), ([2], [1]))

    def test_a_member_who_unfollows_while_it_is_told_gets_no_more(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.stream.put(TOPIC, 2)

        def deliver(message: Message) -> None:
            self.deliver(message)
            self.tail.unfollow(TOPIC)

        self.tail.deliver = deliver
        self.send(3, 2)
        self.assertEqual(self.delivered, [1])


class Doubt(TailCase):
    """A source that numbers its own deliveries, instead of saying which message came before."""

    def test_what_follows_on_needs_no_read(self) -> None:
        self.follow()
        self.send(1, -1)
        self.send(7, -1)
        self.assertEqual((self.delivered, self.stream.reads), ([1, 7], []))

    def test_after_a_hole_each_topic_is_read_once(self) -> None:
        self.follow()
        self.send(1, -1)
        self.stream.put(TOPIC, 2)
        self.tail.doubt()
        self.send(3, -1)
        self.send(4, -1)
        self.assertEqual((self.delivered, len(self.stream.reads)), ([1, 2, 3, 4], 1))

    def test_what_is_delivered_again_later_is_dropped(self) -> None:
        self.follow()
        self.send(1, -1)
        self.live(1, -1)
        self.assertEqual((self.delivered, self.suspicions), ([1], 0))

    def test_what_was_held_back_during_a_read_follows_on(self) -> None:
        self.follow()
        self.tail.doubt()
        self.stream.waiting = []
        self.send(1, -1)
        for seq in range(2, 6):
            self.live(seq, -1)
        self.stream.answer()
        self.assertEqual(self.delivered, [1, 2, 3, 4, 5])
        self.assertEqual(len(self.stream.reads), 1)


class Comparing(TailCase):
    def compare(self, grace: float = 0.25) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.tail.check(grace)))

    def test_what_never_arrived_is_found(self) -> None:
        self.follow()
        self.follow(OTHER)
        self.stream.put(TOPIC, 1)
        self.compare()
        self.assertEqual(self.delivered, [])
        self.clock.advance(0.25)
        self.assertEqual(self.delivered, [1])

    def test_what_came_and_aged_out_between_two_comparisons_is_told(self) -> None:
        self.stream.put(TOPIC, 3)
        self.follow()
        self.stream.oldest = 4
        self.compare(0.0)
        self.assertEqual(self.lost, [])  # only messages that were delivered are gone
        self.stream.oldest = 9
        self.compare(0.0)
        self.assertEqual(self.lost, [TOPIC])

    def test_what_was_on_its_way_is_not_read(self) -> None:
        self.follow()
        self.stream.put(TOPIC, 1)
        self.compare()
        self.live(1, 0)
        self.clock.advance(0.25)
        self.assertEqual((self.delivered, self.stream.reads), ([1], []))

    def test_a_comparison_extends_what_is_known_to_be_whole(self) -> None:
        self.stream.put(TOPIC, 3)
        self.follow()
        self.follow(OTHER)
        self.stream.put(OTHER, 20)
        self.live(20, 0, OTHER)
        self.compare()
        self.stream.stored[TOPIC.subject] = []
        self.stream.oldest = 20
        self.send(25, 0)
        self.assertEqual((self.delivered, self.lost), ([20, 25], []))

    def test_another_history_is_the_end_of_every_topic(self) -> None:
        self.follow()
        self.follow(OTHER)
        self.assertEqual(self.tail.forget_all(), [TOPIC, OTHER])
        self.assertEqual((self.tail.states, self.source.topics, self.tail.highest), ({}, [], 0))

    def test_after_stop_nothing_is_said(self) -> None:
        self.follow()
        self.stream.away = True
        self.send(2, 1)
        self.tail.stop()
        self.assertEqual((self.clock.getDelayedCalls(), self.lost), ([], []))


class Storm(TailCase):
    def test_any_loss_and_delay_ends_in_every_message_once_and_in_order(self) -> None:
        for seed in range(60):
            self.setUp()
            random = Random(seed)
            self.follow()
            last, kept = 0, []
            for seq in range(1, 120):
                self.stream.put(TOPIC, seq)
                kept.append((seq, last))
                last = seq
                if random.random() < 0.3:
                    self.stream.waiting = [] if self.stream.waiting is None else self.stream.waiting
                while kept and random.random() < 0.7:
                    one = kept.pop(0)
                    if random.random() < 0.8:
                        self.live(*one)
                if random.random() < 0.3:
                    self.stream.answer()
                if random.random() < 0.05:
                    self.stream.answer()
                    self.compare_now()
            self.stream.answer()
            self.compare_now()
            self.clock.advance(1)
            self.assertEqual(self.delivered, list(range(1, 120)), f"seed {seed}")
            self.assertEqual(self.tail.busy, 0)

    def compare_now(self) -> None:
        done: Any = Deferred.fromCoroutine(self.tail.check(0.0))
        self.successResultOf(done)
