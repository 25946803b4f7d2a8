"""Messages wait for workers that are behind, and not for those that take nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import Unavailable
from notify.workers.frames import Document, Reply, pack
from notify.workers.link import Link
from notify.workers.pace import AT_ONCE, LOOK, STUCK, Pace

#: of this, 1000 bytes are much
BOUND = 256_000


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

    def wants(self, *wanted: tuple[int, str]) -> list[str]:
        """Ask for each workspace and name, one after the other: the names of those that may publish, in their order."""
        given: list[str] = []
        for workspace, name in wanted:
            wait = self.pace(workspace, 100)
            if wait is None:
                given.append(name)
            else:
                wait.addCallback(lambda _, name=name: given.append(name))
        return given

    def test_nobody_waits_for_workers_that_keep_up(self) -> None:
        self.assertIsNone(self.pace(1, 100))
        self.queue(self.links[0], 500)
        self.assertIsNone(self.pace(1, 100))

    def test_what_is_to_be_published_waits_until_a_worker_that_is_behind_has_caught_up(self) -> None:
        self.queue(self.links[1], 1000)
        given_up, *others = [self.pace(1, 100), self.pace(1, 100)]
        for _ in range(2 * int(STUCK / LOOK)):  # longer than a stuck worker is waited for
            self.links[1].taken += 1
            self.looks()
        for one in given_up, *others:
            self.assertNoResult(one)
        given_up.cancel()
        self.failureResultOf(given_up, Unavailable)
        self.links[1].go_on()
        others.append(self.pace(1, 100))
        self.assertNoResult(others[-1])  # what waits goes first
        self.looks()
        for one in others:
            self.assertIsNone(self.successResultOf(one))
        self.looks()
        self.assertIsNone(self.pace(1, 100))
        self.looks()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_second_look_is_planned_for_those_who_come_while_others_are_let_go(self) -> None:
        self.queue(self.links[0], 1000)
        more: list[Any] = []
        wait = self.pace(1, AT_ONCE)
        assert wait is not None
        wait.addCallback(lambda _: more.extend(self.pace(1, 100) for _ in range(3)))
        self.links[0].go_on()
        self.looks()
        for one in more:
            self.assertIsNone(self.successResultOf(one))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_workspaces_take_turns_and_each_keeps_its_order(self) -> None:
        self.queue(self.links[0], 1000)
        given = self.wants(*((1, f"1.{number}") for number in range(4)), (2, "2.0"), (2, "2.1"), (3, "3.0"))
        self.assertEqual(given, [])
        self.links[0].go_on()
        self.looks()
        self.assertEqual(given, ["1.0", "2.0", "3.0", "1.1", "2.1", "1.2", "1.3"])

    def test_in_one_turn_no_more_is_published_than_may_be_queued(self) -> None:
        sizes = [AT_ONCE // 2, AT_ONCE // 2, 100, 10 * AT_ONCE, 100]
        waits = [self.pace(1, size) for size in sizes]
        self.assertEqual([wait is None for wait in waits], [True, True, False, False, False])
        happened: list[str] = []
        waits[3].addCallback(lambda _: self.clock.callLater(0, happened.append, "the turn ends"))
        for place in 2, 3, 4:
            waits[place].addCallback(lambda _, place=place: happened.append(f"{place} is published"))
        self.looks()
        self.assertEqual(happened, ["2 is published", "3 is published", "the turn ends", "4 is published"])

    def test_a_worker_that_falls_behind_by_what_waited_is_waited_for_again(self) -> None:
        self.queue(self.links[0], 1000)
        waits = [self.pace(1, AT_ONCE), self.pace(1, AT_ONCE)]
        self.links[0].go_on()
        waits[0].addCallback(lambda _: self.queue(self.links[0], 1000))
        for _ in range(10):
            self.links[0].taken += 1
            self.looks()
        self.assertEqual([wait.called for wait in waits], [True, False])

    def test_a_worker_that_takes_nothing_is_not_waited_for_until_it_does_again(self) -> None:
        self.queue(self.links[0], 1000)
        one = self.pace(1, 100)
        self.looks(int(STUCK / LOOK) - 2)
        self.assertNoResult(one)
        self.looks(4)
        self.assertIsNone(self.successResultOf(one))
        self.assertIsNone(self.pace(1, 100))
        self.links[0].taken += 1
        another = self.pace(1, 100)
        self.assertNoResult(another)
        self.links.clear()  # it has ended
        self.looks()
        self.assertIsNone(self.successResultOf(another))
