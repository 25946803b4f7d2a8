"""The table of breakages matches the tree."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.sabotage import TABLE, caught
from tests.support.programs import ROOT


class Table(SynchronousTestCase):
    """Each row breaks exactly the line that it quotes."""

    def test_the_old_text_of_each_is_there_once(self) -> None:
        lost = [one.name for one in TABLE if (ROOT / "notify" / one.path).read_text().count(one.old) != 1]
        self.assertEqual(lost, [])

    def test_each_changes_something_that_is_still_python(self) -> None:
        for one in TABLE:
            with self.subTest(one.name):
                text = (ROOT / "notify" / one.path).read_text().replace(one.old, one.new)
                compile(text, one.path, "exec")

    def test_there_are_enough_of_them(self) -> None:
        self.assertGreaterEqual(len(TABLE), 25)
        self.assertEqual(len({one.name for one in TABLE}), len(TABLE))

    def test_one_is_caught(self) -> None:
        [one] = [one for one in TABLE if one.why == "prev names a number that was not sent"]
        took, how = caught(one)
        self.assertGreater(took, 0.0)
        self.assertIn("prev is open", how)
