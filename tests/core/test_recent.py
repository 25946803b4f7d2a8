"""Tails of topics, bounded together: the oldest message of any topic goes first; a tail knows where it is complete."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from notify.core.recent import Reach, Recents, Tail
from notify.messages import OVERHEAD, Message, Position, parse_event
from notify.testing import chat_payload
from notify.topics import chat

TOPIC = chat(1, 10)
EVENT = parse_event(TOPIC, chat_payload(TOPIC))


def messages(*seqs: int, size: int = 100) -> list[Message]:
    return [Message(TOPIC, Position("e", seq), EVENT, size=size) for seq in seqs]


def seqs(tail: Tail, after: int) -> list[int]:
    return [message.position.seq for message in tail.after(after)]


class Tails(SynchronousTestCase):
    def setUp(self) -> None:
        self.recents = Recents()
        self.tail = Tail(self.recents, 10)

    def test_gives_what_came_after_a_number(self) -> None:
        self.tail.add(messages(12, 15), 1000)
        self.tail.add(messages(20), 1000)
        self.assertEqual(
            [seqs(self.tail, n) for n in (10, 12, 13, 20)], [[12, 15, 20], [15, 20], [15, 20], [20][1:]]
        )
        self.assertEqual((self.tail.start, self.tail.gone, len(self.tail)), (10, 0, 3))

    def test_begins_behind_the_last_that_went(self) -> None:
        self.tail.add(messages(12, 15, 20), 1000)
        self.tail.bound(2)
        self.assertEqual((self.tail.start, self.tail.gone, seqs(self.tail, 12)), (12, 12, [15, 20]))
        self.tail.clear()
        self.assertEqual((self.tail.start, self.recents.count, self.recents.bytes), (20, 0, 0))

    def test_is_extended_backwards(self) -> None:
        self.tail.add(messages(12), 1000)
        self.tail.bound(0)
        self.tail.add(messages(15), 1000)
        self.tail.extend_backwards(3, messages(4, 9, 12))
        self.assertEqual((self.tail.start, self.tail.gone, seqs(self.tail, 3)), (3, 0, [4, 9, 12, 15]))
        self.assertEqual((self.recents.count, self.recents.bytes), (4, 4 * (100 + OVERHEAD)))


class Together(SynchronousTestCase):
    def setUp(self) -> None:
        self.recents = Recents()
        self.one, self.two = Tail(self.recents, 0), Tail(self.recents, 0)

    def test_the_oldest_anywhere_goes_first(self) -> None:
        self.one.add(messages(1, 2), 1000)
        self.two.add(messages(3), 1000)
        self.one.add(messages(4), 1000)
        self.recents.bound(2, 10**6)
        self.assertEqual((self.one.start, self.two.start), (2, 0))
        self.recents.bound(1, 10**6)
        self.assertEqual((self.one.start, self.two.start, seqs(self.one, 2)), (2, 3, [4]))

    def test_bytes_are_bounded_too_each_message_with_what_it_takes_beside_its_payload(self) -> None:
        self.one.add(messages(1, size=1000), 1000)
        self.two.add(messages(2, 3, size=1), 1000)
        self.recents.bound(100, 2 * (OVERHEAD + 1) + OVERHEAD + 999)
        self.assertEqual((self.one.start, len(self.one), len(self.two)), (1, 0, 2))

    def test_what_was_read_back_is_not_the_oldest(self) -> None:
        self.one.add(messages(10), 1000)
        self.two.add(messages(11), 1000)
        self.one.extend_backwards(5, messages(6, 7))
        self.recents.bound(3, 10**6)
        self.assertEqual((len(self.one), len(self.two)), (3, 0))

    def test_a_tail_that_went_out_of_turn_costs_no_other_its_messages(self) -> None:
        self.one.add(messages(1, 2), 1000)
        self.two.add(messages(3, 4), 1000)
        self.one.clear()
        self.recents.bound(1, 10**6)
        self.assertEqual((self.two.start, self.recents.count), (3, 1))

    def test_whatever_happens_it_is_within_its_bounds_and_counts_right(self) -> None:
        random, seq = Random(1), 0
        tails = [Tail(self.recents, 0) for _ in range(5)]
        for step in range(20_000):
            tail = random.choice(tails)
            match random.randrange(20):
                case 0:
                    tail.bound(random.randrange(5))
                case 1 if tail.start > 3:
                    tail.extend_backwards(tail.start - 3, messages(tail.start - 2, tail.start))
                case 2:
                    tail.clear()
                case _:
                    seq += random.randrange(1, 4)
                    tail.add(messages(seq, size=random.randrange(1000)), 1000)
            self.recents.bound(40, 40_000)
            kept = [message for one in tails for message in one.after(0)]
            self.assertEqual(self.recents.count, len(kept), step)
            self.assertEqual(self.recents.bytes, sum(message.size + OVERHEAD for message in kept), step)
            self.assertTrue(len(kept) <= 40 and self.recents.bytes <= 40_000, step)
            self.assertLessEqual(len(self.recents.log), 2 * 40 + 1001 + 40)


class Reaches(SynchronousTestCase):
    def test_is_twice_what_nine_of_ten_wanted_lately_and_more_where_few_came(self) -> None:
        reach = Reach()
        self.assertEqual(reach.usual(), 0)
        for distance in (0, 0, 0, 50):
            reach.note(distance)
        self.assertEqual(reach.usual(), 22 * 50)
        for distance in [*range(1, 91), *[10**6] * 9]:
            reach.note(distance)
        self.assertTrue(160 <= reach.usual() <= 180)
        for _ in range(100):
            reach.note(3)
        self.assertEqual(reach.usual(), 6)
