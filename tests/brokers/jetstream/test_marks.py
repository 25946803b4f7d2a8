"""Marks: messages that were heard from the stream, which later prove that it is still the same one."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.marks import Marks
from notify.brokers.jetstream.stream import Mark

DAY = "2026-11-28T00:00:00"


def block(nanoseconds: int) -> bytes:
    return f"NATS/1.0\r\nNats-Time-Stamp: {DAY}.{nanoseconds:09}Z\r\n\r\n".encode()


class Marking(SynchronousTestCase):
    def setUp(self) -> None:
        self.marks = Marks()

    def test_the_highest_that_came_counts_whatever_says_when(self) -> None:
        self.marks.heard(7, 70)
        self.marks.heard(5, 50)
        self.assertEqual(self.marks.all(), [Mark(7, 70)])
        self.marks.heard(8, block(80))
        self.assertEqual(self.marks.all()[0].stamp % 1000, 80)

    def test_a_second_message_with_a_number_that_came_is_younger(self) -> None:
        """Late and repeated messages are not younger: they are as old as their number."""
        for stamps in (range(50, 100, 10), [block(n) for n in range(50, 100, 10)]):
            marks = Marks()
            five, six, seven, again, _ = stamps
            marks.heard(6, six)
            marks.heard(7, seven)
            self.assertFalse(marks.younger(5, five))
            self.assertFalse(marks.younger(7, seven))
            self.assertTrue(marks.younger(7, again))
            self.assertTrue(marks.younger(6, again))
            self.assertFalse(marks.younger(8, again))

    def test_what_is_kept_stays_until_it_was_found(self) -> None:
        self.marks.heard(7, 70)
        self.marks.stored(9, "id")
        self.marks.keep()
        self.marks.heard(12, 120)
        self.marks.stored(11, "other")
        everything = self.marks.all()
        self.assertEqual(
            set(everything), {Mark(12, 120), Mark(11, 0, "other"), Mark(7, 70), Mark(9, 0, "id")}
        )
        self.marks.confirm(everything)
        self.assertEqual((self.marks.all(), list(self.marks.kept)), ([Mark(12, 120)], []))

    def test_what_was_found_is_not_kept_again(self) -> None:
        """It may age out and then proves nothing; how far the stream reached when it was found is already on record."""
        self.marks.heard(7, 70)
        self.marks.stored(6, "id")
        self.marks.confirm(self.marks.all())
        self.marks.keep()
        self.assertEqual(list(self.marks.kept), [])
        self.marks.heard(8, 80)
        self.marks.keep()
        self.assertEqual(list(self.marks.kept), [Mark(8, 80)])

    def test_one_that_its_id_alone_tells_from_another_is_asked_for(self) -> None:
        self.assertIsNone(self.marks.undated)
        self.marks.heard(7, 70)
        self.marks.stored(6, "heard")
        self.assertIsNone(self.marks.undated)
        self.marks.stored(9, "id")
        self.assertEqual(self.marks.undated, Mark(9, 0, "id"))
        for other in (Mark(9), Mark(9, 95, "other"), Mark(8, 80, "id")):
            self.marks.dated(other)
            self.assertEqual(self.marks.undated, Mark(9, 0, "id"), other)
        self.marks.dated(Mark(9, 90, "id"))
        self.assertIsNone(self.marks.undated)
        self.assertIn(Mark(9, 90, "id"), self.marks.all())
        self.marks.stored(11, "confirmed")
        self.marks.confirm(self.marks.all())
        self.assertIsNone(self.marks.undated)

    def test_only_so_many_are_kept(self) -> None:
        for seq in range(1, 100):
            self.marks.heard(seq, seq)
            self.marks.keep()
        self.assertEqual([mark.seq for mark in self.marks.kept], list(range(1, 17)))
