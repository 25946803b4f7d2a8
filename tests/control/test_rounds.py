"""One request to several nodes, without any nodes."""

from twisted.trial.unittest import SynchronousTestCase

from notify.control.rounds import Round
from notify.interfaces import Gathered


class Rounds(SynchronousTestCase):
    def setUp(self) -> None:
        self.gathered: list[Gathered] = []
        self.closed = 0
        self.round = Round({"1": "a", "2": "b"}, self.gathered.append)
        self.round.closing.append(self.close)

    def close(self) -> None:
        self.assertEqual(self.gathered, [])
        self.closed += 1

    def over(self, answers: list[tuple[str, bytes]], missing: list[str], detail: str = "") -> None:
        self.assertEqual(self.gathered, [Gathered(answers, missing, detail)])
        self.assertEqual(self.closed, 1)

    def test_is_over_when_all_have_answered_and_nobody_else_can(self) -> None:
        self.round.heard("2", "b", b"2")
        self.round.heard("1", "a", b"1")
        self.assertEqual(self.gathered, [])
        self.round.settle()
        self.over([("a", b"1"), ("b", b"2")], [])

    def test_who_was_not_known_is_welcome(self) -> None:
        self.round.settle()
        for id, node in (("3", "c"), ("2", "b"), ("1", "a")):
            self.assertEqual(self.gathered, [])
            self.round.heard(id, node, id.encode())
        self.over([("a", b"1"), ("b", b"2"), ("c", b"3")], [])

    def test_two_of_one_name_count_as_two(self) -> None:
        self.round.settle()
        self.round.heard("1", "a", b"1")
        self.round.heard("2", "a", b"1")
        self.over([("a", b"1"), ("a", b"1")], [])

    def test_nobody_counts_twice(self) -> None:
        self.round.settle()
        self.round.heard("1", "a", b"1")
        self.round.heard("1", "a", b"again")
        self.round.heard("2", "b", b"2")
        self.round.heard("2", "b", b"late")
        self.over([("a", b"1"), ("b", b"2")], [])

    def test_who_failed_or_is_silent_is_missing(self) -> None:
        self.round.settle()
        self.round.heard("2", "b", None)
        self.round.finish()
        self.over([], ["a", "b"])
        self.round.finish("again")
        self.round.only("1", "again")
        self.assertEqual(len(self.gathered), 1)

    def test_who_left_is_not_missing_and_may_have_answered(self) -> None:
        self.round.settle()
        self.round.heard("2", "b", b"2")
        self.round.left("2")
        self.assertEqual(self.gathered, [])
        self.round.left("1")
        self.round.left("1")
        self.over([("b", b"2")], [])

    def test_where_no_other_can_be_reached_only_this_one_is_waited_for(self) -> None:
        self.round.only("1", "alone")
        self.assertEqual(self.gathered, [])
        self.round.heard("1", "a", b"1")
        self.over([("a", b"1")], ["b"], "alone")

    def test_where_nobody_is_waited_for_it_is_over_once_it_is_settled(self) -> None:
        gathered: list[Gathered] = []
        Round({}, gathered.append).settle()
        self.assertEqual(gathered, [Gathered([], [])])
