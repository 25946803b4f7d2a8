"""Questions that can wait: how many are asked a second, in which order, and what happens if nobody answers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from notify.auth.paced import Paced
from notify.errors import Unavailable


class PacedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.put: list[tuple[float, list[int]]] = []
        self.waiting: list[Deferred[Mapping[int, bool]]] = []
        self.held = False

    def make(self, most: int = 1, rate: float = 10, at_once: int = 100, patience: float = 60) -> Paced[int]:
        return Paced(self.clock, self.ask, most, rate, at_once, patience)

    async def ask(self, questions: list[int]) -> Mapping[int, bool]:
        self.put.append((self.clock.seconds(), questions))
        if self.held:
            self.waiting.append(Deferred())
            return await self.waiting[-1]
        return {question: question % 2 == 0 for question in questions}

    def pass_by(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def test_no_more_a_second_than_the_rate_and_in_the_order_of_asking(self) -> None:
        paced = self.make(rate=10)
        paced.ask(range(50))
        self.pass_by(2)
        times = [at for at, _ in self.put]
        self.assertEqual([questions for _, questions in self.put], [[n] for n in range(len(times))])
        self.assertTrue(19 <= len(times) <= 21, times)
        self.assertGreaterEqual(min(b - a for a, b in pairwise(times)), 0.0999)

    def test_as_many_at_once_as_are_taken(self) -> None:
        paced = self.make(most=20)
        first, second = paced.ask(range(15)), paced.ask(range(10, 25))
        self.pass_by(0.5)
        self.assertEqual([len(questions) for _, questions in self.put], [20, 5])
        self.assertEqual(self.successResultOf(first), {n: n % 2 == 0 for n in range(15)})
        self.assertEqual(self.successResultOf(second), {n: n % 2 == 0 for n in range(10, 25)})

    def test_no_more_are_under_way_than_may_be(self) -> None:
        paced, self.held = self.make(at_once=2), True
        asked = paced.ask(range(3))
        self.pass_by(5)
        self.assertEqual(len(self.put), 2)
        self.waiting[0].callback({0: True})
        self.pass_by(0.2)
        self.assertEqual(len(self.put), 3)
        for one in self.waiting[1:]:
            one.callback({})
        self.assertEqual(self.successResultOf(asked), {0: True})

    def test_where_nobody_is_there_all_who_wait_are_told_at_once(self) -> None:
        paced, self.held = self.make(at_once=1), True
        many = [paced.ask([n, n + 100]) for n in range(100)]
        self.pass_by(0.1)
        again = paced.ask([0])
        self.waiting[0].errback(Unavailable("away"))
        for one in [*many, again]:
            self.assertEqual(self.successResultOf(one), {})
        self.assertEqual((len(paced), self.clock.getDelayedCalls()), (0, []))

    def test_a_fault_of_ours_leaves_nobody_waiting(self) -> None:
        paced, self.held = self.make(), True
        asked, other = paced.ask([1]), paced.ask([2])
        self.pass_by(0.2)
        self.waiting[0].errback(RuntimeError("ours"))
        self.assertEqual(self.successResultOf(asked), {})
        self.assertNoResult(other)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_who_gave_up_is_not_asked_for(self) -> None:
        paced = self.make()
        gone = [paced.ask([n]) for n in range(100)]
        for one in gone:
            one.addErrback(lambda failure: None)
            one.cancel()
        left = paced.ask([7, 500])
        self.pass_by(1)
        self.assertEqual([questions for _, questions in self.put], [[7], [500]])
        self.assertEqual(self.successResultOf(left), {7: False, 500: True})

    def test_the_log_says_when_the_rate_is_too_low(self) -> None:
        events: list[Any] = []
        self.patch(Paced, "log", Logger(observer=events.append))
        paced = self.make(rate=1, patience=5)
        paced.ask(range(8))
        self.pass_by(5)
        self.assertEqual(events, [])
        self.pass_by(2)
        self.assertGreaterEqual(len(events), 1)

    def test_nothing_is_asked_once_stopped_and_nobody_waits_for_it(self) -> None:
        paced = self.make()
        waiting = paced.ask([1, 2])
        paced.stop()
        self.assertEqual(self.successResultOf(waiting), {})
        self.assertEqual((self.clock.getDelayedCalls(), self.put), ([], []))
        self.assertEqual(self.successResultOf(paced.ask([])), {})
