"""Newest positions: one lookup for all that ask in a turn, and no position that may be from another history."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream import positions as module
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.positions import Positions
from notify.brokers.jetstream.stored import Newest
from notify.errors import Unavailable
from notify.messages import Position
from notify.topics import chat


class FakeReader:
    """Lookups that the test answers."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.holes = Holes()
        self.asked: list[tuple[list[str], int]] = []
        self.answers: list[Deferred[Newest]] = []

    async def newest(self, subjects: Sequence[str], since: int = 1, at_least: int = 0) -> Newest:
        self.asked.append((list(subjects), at_least))
        answer: Deferred[Newest] = Deferred()
        self.answers.append(answer)
        return await answer


class PositionsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.reader = Clock(), FakeReader()
        self.positions = Positions(self.reader, self.clock, lambda: 70)

    def ask(self, *numbers: int) -> list[Deferred[Position]]:
        return [self.positions.ask(chat(1, number)) for number in numbers]

    def answer(self, up_to: int, **found: int) -> None:
        newest = Newest({chat(1, int(n[1:])).subject: seq for n, seq in found.items()}, up_to)
        self.reader.answers.pop(0).callback(newest)

    def test_who_asks_in_one_turn_shares_a_lookup_that_reaches_to_what_is_known_to_exist(self) -> None:
        asked = self.ask(1, 2, 1)
        self.clock.advance(0)
        self.assertEqual(self.reader.asked, [([chat(1, 1).subject, chat(1, 2).subject], 70)])
        self.answer(90, n1=40, n2=80)
        told = [self.successResultOf(one) for one in asked]
        self.assertEqual(told, [Position("e1", 40), Position("e1", 80), Position("e1", 40)])

    def test_who_asks_while_a_lookup_is_under_way_gets_the_next_for_that_one_may_be_too_old(self) -> None:
        [first] = self.ask(1)
        self.clock.advance(0)
        [second] = self.ask(1)
        self.answer(90, n1=40)
        self.assertEqual(self.successResultOf(first).seq, 40)
        self.assertNoResult(second)
        self.answer(91, n1=91)
        self.assertEqual(self.successResultOf(second).seq, 91)
        [third] = self.ask(1)
        self.clock.advance(0)
        self.answer(92, n1=92)
        self.assertEqual(self.successResultOf(third).seq, 92)

    def test_lookups_are_bounded_in_subjects(self) -> None:
        self.patch(module, "LOOKUP", 2)
        asked = self.ask(1, 2, 3)
        self.clock.advance(0)
        self.answer(9, n1=1, n2=2)
        self.answer(9, n3=3)
        self.assertEqual([self.successResultOf(one).seq for one in asked], [1, 2, 3])
        self.assertEqual([len(subjects) for subjects, _ in self.reader.asked], [2, 1])

    def test_who_may_wait_is_bounded(self) -> None:
        self.patch(module, "_WAITING", 2)
        asked = self.ask(1, 2, 3, 2)
        self.failureResultOf(asked[2], Unavailable)
        self.clock.advance(0)
        self.answer(9)
        self.assertEqual([self.successResultOf(asked[n]).seq for n in (0, 1, 3)], [9, 9, 9])

    def test_a_topic_without_messages_is_where_was_looked_and_one_before_a_missing_number_behind_it(
        self,
    ) -> None:
        self.reader.holes = Holes([50, 60])
        asked = self.ask(1, 2, 3)
        self.clock.advance(0)
        self.answer(90, n2=55, n3=61)
        self.assertEqual([self.successResultOf(one).seq for one in asked], [90, 60, 61])

    def test_an_answer_while_the_history_was_made_anew_is_none(self) -> None:
        asked = self.ask(1)
        self.clock.advance(0)
        self.reader.epoch = "e2"
        self.answer(90, n1=3)
        self.failureResultOf(asked[0], Unavailable)
        again = self.ask(1)
        self.clock.advance(0)
        self.answer(90, n1=3)
        self.assertEqual(self.successResultOf(again[0]), Position("e2", 3))

    def test_a_lookup_that_fails_is_told_to_its_own_and_the_next_goes_on(self) -> None:
        for error in (Unavailable("away"), RuntimeError("odd")):
            [mine] = self.ask(1)
            self.clock.advance(0)
            [other] = self.ask(2)
            self.reader.answers.pop(0).errback(error)
            self.failureResultOf(mine, Unavailable)
            self.answer(9, n2=2)
            self.assertEqual(self.successResultOf(other).seq, 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_who_gives_up_is_not_answered_and_others_are(self) -> None:
        first, second = self.ask(1, 1)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.clock.advance(0)
        [third] = self.ask(1)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.answer(9, n1=1)
        self.answer(9, n1=1)
        self.assertEqual(self.successResultOf(third).seq, 1)

    def test_a_stop_answers_all(self) -> None:
        first = self.ask(1)[0]
        self.clock.advance(0)
        second = self.ask(2)[0]
        self.positions.stop()
        for one in (first, second):
            self.failureResultOf(one, Unavailable)
        self.positions.stop()
