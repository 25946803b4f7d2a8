"""What a client may spend, with a clock that is only a number."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.core.allowance import ITEMS_AT_ONCE, ITEMS_PER_SECOND, Allowance

LIMITS = Limits(frames_per_second=10, frames_burst=20)


class Frames(SynchronousTestCase):
    def setUp(self) -> None:
        self.allowance = Allowance(LIMITS, 100.0)

    def spend(self, frames: int, now: float, limits: Limits = LIMITS) -> int:
        """How many of these frames are within the rate."""
        return sum(self.allowance.spend(limits, now) for _ in range(frames))

    def test_a_burst_is_free_and_then_the_rate_is(self) -> None:
        self.assertEqual(self.spend(30, 100.0), 20)
        self.assertEqual(self.spend(1, 100.5), 0)
        # The ten frames refused at first and the one refused later are paid for, too: 20 earned, 11 owed.
        self.assertEqual(self.spend(30, 102.0), 9)

    def test_who_rests_has_a_burst_again_and_no_more(self) -> None:
        self.spend(20, 100.0)
        self.assertEqual(self.spend(40, 1000.0), 20)

    def test_many_frames_are_paid_for_at_once_as_each_by_itself(self) -> None:
        self.assertTrue(self.allowance.spend(LIMITS, 100.0, 15))
        self.assertFalse(self.allowance.spend(LIMITS, 100.0, 6))
        self.assertEqual(self.spend(3, 100.2), 1)

    def test_a_flood_is_as_far_over_as_a_burst_is_under(self) -> None:
        self.spend(40, 100.0)
        self.assertFalse(self.allowance.flooded(LIMITS))
        self.spend(1, 100.0)
        self.assertTrue(self.allowance.flooded(LIMITS))

    def test_a_clock_that_is_set_back_earns_and_costs_nothing(self) -> None:
        self.spend(10, 100.0)
        self.assertEqual(self.spend(20, 40.0), 10)
        self.assertEqual(self.spend(30, 42.0), 10)

    def test_limits_that_are_replaced_hold_at_once(self) -> None:
        self.assertEqual(self.spend(20, 100.0, Limits(frames_per_second=10, frames_burst=5)), 5)

    def test_a_rate_of_nought_is_none(self) -> None:
        unlimited = Limits(frames_per_second=0, frames_burst=1)
        self.assertEqual(self.spend(100, 100.0, unlimited), 100)
        self.assertFalse(self.allowance.flooded(unlimited))


class Items(SynchronousTestCase):
    def setUp(self) -> None:
        self.allowance = Allowance(LIMITS, 100.0)

    def test_what_is_over_is_waited_for(self) -> None:
        self.assertEqual(self.allowance.owe(ITEMS_AT_ONCE), 0.0)
        self.assertAlmostEqual(self.allowance.owe(ITEMS_PER_SECOND), 1.0)

    def test_what_was_waited_for_is_paid(self) -> None:
        self.allowance.owe(ITEMS_AT_ONCE + ITEMS_PER_SECOND)
        self.allowance.spend(LIMITS, 101.0)
        self.assertEqual(self.allowance.owe(0), 0.0)
        self.assertAlmostEqual(self.allowance.owe(1), 1 / ITEMS_PER_SECOND)

    def test_it_is_counted_where_frames_have_no_limit(self) -> None:
        unlimited = Limits(frames_per_second=0)
        self.allowance.owe(2 * ITEMS_AT_ONCE)
        self.allowance.spend(unlimited, 100.1)
        self.assertAlmostEqual(self.allowance.owe(0), 0.1)
