"""The table of defences matches the tree."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.security.mutations import TABLE, Mutation, caught
from tests.support.programs import ROOT


class Table(TestCase):
    timeout = 300

    def test_the_old_text_of_each_is_there_once(self) -> None:
        lost = [one.name for one in TABLE if (ROOT / "notify" / one.path).read_text().count(one.old) != 1]
        self.assertEqual(lost, [])

    def test_each_leaves_something_that_is_still_python(self) -> None:
        for one in TABLE:
            text = (ROOT / "notify" / one.path).read_text().replace(one.old, one.new)
            compile(text, one.path, "exec")
        self.assertGreaterEqual(len(TABLE), 20)

    def test_one_is_caught_and_what_breaks_nothing_is_not(self) -> Deferred[None]:
        [one] = [one for one in TABLE if one.test.endswith("test_refuses_a_name_that_occurs_twice")]

        def both() -> None:
            self.assertTrue(caught(one)[0])
            self.assertFalse(caught(Mutation(one.path, one.old, one.old + "            pass\n", one.test))[0])

        return deferToThread(both)
