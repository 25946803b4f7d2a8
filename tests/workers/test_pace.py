"""Publishers wait for workers that are behind, and not for those that take nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.workers.frames import Document, Reply, pack
from notify.workers.link import Link
from notify.workers.pace import LET_GO, LOOK, STUCK, Pace

BOUND = 16_000


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.links = [self.link(), self.link()]
        self.pace = Pace(self.clock, lambda: self.links)

    def link(self) -> Link:
        return Link(lambda data: None, lambda call: self.clock.callLater(0, call), lambda reason: None, BOUND)

    def queue(self, link: Link, size: int) -> None:
        link.hold()
        link.send(pack(Reply(1, Document(b"x" * size))))

    def looks(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(LOOK)

    def test_nobody_waits_for_workers_that_keep_up(self) -> None:
        self.assertIsNone(self.pace(100))
        self.queue(self.links[0], 500)
        self.assertIsNone(self.pace(100))

    def test_who_publishes_waits_until_a_worker_that_is_behind_has_caught_up(self) -> None:
        self.queue(self.links[1], 1000)
        waiting = [self.pace(100), self.pace(100)]
        for _ in range(200):  # longer than a stuck worker is waited for
            self.links[1].taken += 1
            self.looks()
        for one in waiting:
            self.assertNoResult(one)
        given_up, *others = waiting
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        self.links[1].go_on()
        others.append(self.pace(100))
        self.looks()
        for one in others:
            self.assertIsNone(self.successResultOf(one))
        self.assertIsNone(self.pace(100))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_who_waited_are_let_go_one_after_the_other(self) -> None:
        self.queue(self.links[0], 1000)
        waiting = [self.pace(LET_GO // 2) for _ in range(6)]
        gone: list[int] = []
        for number, one in enumerate(waiting):
            one.addCallback(lambda _, number=number: gone.append(number))
        waiting[1].cancel()
        self.failureResultOf(waiting[1], CancelledError)
        self.links[0].go_on()
        waiting[0].addCallback(lambda _: waiting.append(self.pace(1).addCallback(lambda _: gone.append(6))))
        self.looks()
        self.assertEqual(gone, [0, 2])
        self.queue(self.links[0], 1000)  # what they published
        self.looks(2)
        self.assertEqual(gone, [0, 2])
        self.links[0].go_on()
        self.looks()
        self.assertEqual(gone, [0, 2, 3, 4])
        self.looks()
        self.assertEqual(gone, [0, 2, 3, 4, 5, 6])
        self.assertIsNone(self.pace(LET_GO))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_worker_that_takes_nothing_is_not_waited_for_until_it_does_again(self) -> None:
        self.queue(self.links[0], 1000)
        one = self.pace(100)
        self.looks(int(STUCK / LOOK) - 2)
        self.assertNoResult(one)
        self.looks(4)
        self.assertIsNone(self.successResultOf(one))
        self.assertIsNone(self.pace(100))
        self.links[0].taken += 1
        another = self.pace(100)
        self.assertNoResult(another)
        self.links.clear()  # it has ended
        self.looks()
        self.assertIsNone(self.successResultOf(another))
