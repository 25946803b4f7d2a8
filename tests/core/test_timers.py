"""The timer wheel."""

from collections.abc import Callable, Iterator
from itertools import chain, permutations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.core.timers import Wheel


def powerset(names: str) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(permutations(names, count) for count in range(len(names) + 1))


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.wheel = Wheel(self.clock, tick=0.25)
        self.wheel.start()
        self.calls: list[str] = []

    def after(self, seconds: float, name: str) -> object:
        return self.wheel.after(seconds, lambda: self.calls.append(name))

    def test_calls_never_early_and_at_most_a_tick_late(self) -> None:
        self.after(1.0, "a")
        self.clock.pump([0.01] * 99)
        self.assertEqual(self.calls, [])
        self.clock.pump([0.01] * 27)
        self.assertEqual(self.calls, ["a"])
        self.clock.advance(10)
        self.assertEqual(self.calls, ["a"])

    def test_a_clock_that_jumps_leaves_nothing_out(self) -> None:
        for n in range(20):
            self.after(n, str(n))
        self.clock.advance(30)
        self.assertEqual(self.calls, [str(n) for n in range(20)])

    def test_it_turns_for_timers_and_not_for_the_time_that_passes(self) -> None:
        turns: list[float] = []
        later = self.clock.callLater

        def counting(delay: float, call: Callable[[], None]) -> object:
            turns.append(delay)
            return later(delay, call)

        self.clock.callLater = counting  # type: ignore[method-assign, assignment]
        self.clock.pump([0.05] * 2000)
        self.assertLessEqual(len(turns), 52)
        turns.clear()
        self.after(60, "a")
        self.after(3, "b")
        self.clock.pump([0.05] * 1400)
        self.assertEqual(self.calls, ["b", "a"])
        self.assertLessEqual(len(turns), 37)

    def test_an_earlier_timer_is_not_kept_waiting_for_a_later_one(self) -> None:
        for seconds in (9, 5, 2, 1, 0.3):
            self.after(seconds, str(seconds))
        self.clock.pump([0.05] * 12)
        self.assertEqual(self.calls, ["0.3"])
        self.clock.pump([0.05] * 200)
        self.assertEqual(self.calls, ["0.3", "1", "2", "5", "9"])

    def test_a_call_may_begin_another_at_once_and_none_is_forgotten(self) -> None:
        # Ticks that are no binary fractions: the division falls short of the slot, or beyond it.
        for tick in (0.01, 0.1, 0.3, 1 / 3):
            clock, left = Clock(), [200]
            wheel = Wheel(clock, tick)
            wheel.start()

            def again(wheel: Wheel = wheel, left: list[int] = left) -> None:
                left[0] -= 1
                wheel.after(0, again)

            again()
            clock.pump([tick / 3] * 700)
            self.assertLessEqual(left[0], 0, tick)
            wheel.stop()

    def test_a_cancelled_timer_is_not_called_even_by_one_of_the_same_turn(self) -> None:
        later = self.after(1, "later")
        self.wheel.after(1, lambda: self.wheel.cancel(later))
        other = self.after(1, "other")
        self.wheel.after(0.1, lambda: self.wheel.cancel(other))
        self.clock.advance(5)
        self.assertEqual(self.calls, ["later"])
        self.wheel.cancel(later)
        self.wheel.cancel(None)

    def test_nothing_is_left_of_a_cancelled_timer(self) -> None:
        # Tokens for a month expire in slots a month away.
        for n in range(100):
            self.wheel.cancel(self.wheel.after(30 * 86400 + n, lambda: None))
        self.assertEqual(self.wheel._slots, {})

    def test_timers_of_the_same_moment_are_cancelled_one_by_one(self) -> None:
        for names in ("a", "ab", "abc"):
            for gone in powerset(names):
                timers = {
                    name: self.wheel.after(5, lambda name=name: self.calls.append(name)) for name in names
                }
                for name in gone:
                    self.wheel.cancel(timers[name])
                    self.wheel.cancel(timers[name])  # a second time does nothing
                self.clock.advance(6)
                self.assertEqual(self.calls, [name for name in names if name not in gone], gone)
                self.calls.clear()

    def test_one_that_fails_does_not_stop_the_others(self) -> None:
        def fails() -> None:
            raise ValueError

        self.wheel.after(1, fails)
        self.after(1, "a")
        self.clock.advance(2)
        self.assertEqual(self.calls, ["a"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_stopped_it_calls_nothing(self) -> None:
        self.after(1, "a")
        self.wheel.stop()
        self.clock.advance(5)
        self.assertEqual((self.calls, self.clock.getDelayedCalls()), ([], []))
