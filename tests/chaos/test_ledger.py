"""Which messages are lost, doubled, out of order or foreign, according to what was recorded."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.chaos.ledger import Held, Ledger, Told
from notify.client import Loss, Position
from notify.topics import chat

ONE, TWO = chat(1, 1), chat(2, 1)


def told(before: int, after: int, at: float = 0, epochs: tuple[str, str] = ("a", "a")) -> Told:
    return Told(Loss(1, Position(epochs[0], before), Position(epochs[1], after)), at)


class Case(SynchronousTestCase):
    """Ten messages of one chat, a second apart and acknowledged at once; number n is at n * 10 in the stream."""

    def setUp(self) -> None:
        self.ledger = Ledger("run")
        self.held = self.ledger.hold("client-1", ONE)
        self.other = self.ledger.hold("client-2", TWO)
        self.held.whole = self.other.whole = True
        for number in range(1, 11):
            one = self.ledger.send(ONE, number)
            one.outcome, one.settled, one.position = "acknowledged", number + 0.1, Position("a", number * 10)

    def receive(self, *numbers: int) -> Held:
        for number in numbers:
            self.ledger.receive(self.held, self.ledger.text(ONE, number), number + 0.2)
        return self.held

    def wrongs(self) -> list[tuple[str, int]]:
        return [(wrong.what, wrong.number) for wrong in self.ledger.wrongs()]


class Wrongs(Case):
    def test_all_once_and_in_order(self) -> None:
        self.receive(*range(1, 11))
        self.assertEqual(self.wrongs(), [])
        self.assertEqual(self.ledger.behind(), [])

    def test_lost(self) -> None:
        self.receive(1, 2, 3, 5, 6, 7, 8, 9)
        self.assertEqual(self.wrongs(), [("lost", 4), ("lost", 10)])
        self.assertEqual(self.ledger.behind(), [self.held])

    def test_nothing_came_at_all(self) -> None:
        self.assertEqual(len(self.wrongs()), 10)

    def test_doubled(self) -> None:
        self.receive(1, 2, 2, *range(3, 11))
        self.assertEqual(self.wrongs(), [("doubled", 2)])
        self.receive(1)
        self.assertEqual(self.wrongs(), [("doubled", 2), ("doubled", 1)])

    def test_out_of_order(self) -> None:
        self.receive(1, 3, 2, *range(4, 11))
        self.assertEqual(self.wrongs(), [("disordered", 2)])

    def test_one_whose_outcome_is_unknown_may_come_late_or_never(self) -> None:
        for number in (2, 5):
            self.ledger.sent[ONE][number - 1].outcome = "unknown"
        self.receive(1, 3, 2, 4, *range(6, 11))
        self.assertEqual(self.wrongs(), [])

    def test_one_that_is_not_back_may_still_come_and_ask_but_not_for_what_it_passed_over(self) -> None:
        self.held.whole = False
        self.receive(1, 3, 4)
        self.assertEqual(self.wrongs(), [("lost", 2)])

    def test_foreign(self) -> None:
        self.receive(*range(1, 11))
        self.ledger.receive(
            self.other, self.ledger.text(ONE, 4), 5.0
        )  # another tenant's chat of the same number
        self.ledger.receive(self.held, self.ledger.text(ONE, 11), 6.0)  # nobody has sent this
        self.ledger.intrude("client-2", ONE.subject, 5, 7.0)
        self.assertEqual(self.wrongs(), [("foreign", 4), ("foreign", 11), ("foreign", 5)])

    def test_what_others_publish_there_is_counted_alone(self) -> None:
        self.receive(*range(1, 11))
        for text in ("hello", "hello my friend", None, "other workspace.1.chat.1.messages 4", "run x y"):
            self.ledger.receive(self.held, text, 1.0)
        self.assertEqual((self.wrongs(), self.ledger.others), ([], 5))


class ToldOf(Case):
    def test_what_it_was_told_of_is_not_lost(self) -> None:
        self.receive(1, 2, 5, 6, 7, 8, 9, 10)
        self.held.told.append(told(20, 40))
        self.assertEqual(self.wrongs(), [])

    def test_what_lies_beside_is(self) -> None:
        self.receive(1, 2, 6, 7, 8, 9, 10)
        self.held.told.append(told(20, 40))
        self.assertEqual(self.wrongs(), [("lost", 5)])

    def test_another_history(self) -> None:
        loss = told(20, 5, epochs=("a", "b"))
        self.assertTrue(loss.covers(Position("a", 30)))
        self.assertFalse(loss.covers(Position("a", 20)))
        self.assertTrue(loss.covers(Position("b", 5)))
        self.assertFalse(loss.covers(Position("b", 6)))
        self.assertTrue(loss.covers(Position("between", 1)))

    def test_one_that_was_told_is_not_behind(self) -> None:
        self.receive(1, 2)
        self.held.told.append(told(20, 100))
        self.assertEqual(self.ledger.behind(), [])


class Reached(Case):
    def test_when_a_client_had_what_there_was(self) -> None:
        self.receive(1, 2, 3, 5)
        self.assertEqual(self.ledger.reached(self.held, by=3.5), 3.2)
        self.assertEqual(self.ledger.reached(self.held, by=4.5), 5.2)
        self.assertIsNone(self.ledger.reached(self.held, by=6.5))
        self.assertEqual(self.ledger.reached(self.held, by=0), float("-inf"))

    def test_being_told_is_as_good(self) -> None:
        self.receive(1, 2, 3)
        self.held.told.append(told(30, 60, at=8.0))
        self.assertEqual(self.ledger.reached(self.held, by=6.5), 8.0)
