"""Simulated lives: those that once failed, a bounded sample of new ones, and the guarantees about seeds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from notify.testing.simulation import Outcome, Plan, draw, play, shrink
from notify.testing.simulation.oracle import Violation
from tests.simulation.run import KNOWN, command, corpus, life
from tests.support.programs import ROOT

#: the number of lives in the bounded sample, and the seed of the first, the same on every machine; `make simulate`
#: plays hundreds
SAMPLE, FIRST = 12, 1_000_000


class Lives(SynchronousTestCase):
    """Nothing goes wrong in these lives."""

    def test_those_that_once_failed(self) -> None:
        for kept in corpus():
            if kept.kind not in KNOWN:
                with self.subTest(seed=kept.seed):
                    self.assertIsNone(play(kept.plan).violation)

    def test_what_is_known_to_go_wrong_still_does(self) -> None:
        """Otherwise it should no longer be left out of other lives."""
        for kept in corpus():
            if kept.kind in KNOWN:
                with self.subTest(seed=kept.seed, kind=kept.kind):
                    self.assertIsNotNone(play(kept.plan).violation, f"take {kept.kind!r} out of KNOWN")

    def test_a_bounded_sample(self) -> None:
        for seed in range(FIRST, FIRST + SAMPLE):
            plan = life(seed)
            violation = play(plan).violation
            self.assertIsNone(violation, f"{violation}: {command(plan, True)}")


class Seeds(SynchronousTestCase):
    """A seed always gives the same life."""

    def test_the_same_bytes_whatever_python_hashes_by(self) -> None:
        def digests(hashing: str) -> list[str]:
            program = (
                "import sys; from notify.testing.simulation import draw, play\n"
                "for seed in sys.argv[1:]: print(play(draw(int(seed))).digest)"
            )
            return subprocess.run(
                [sys.executable, "-c", program, "302", "305", "316", "326"],
                env={**os.environ, "PYTHONHASHSEED": hashing},
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            ).stdout.split()

        first = digests("1")
        self.assertEqual(len(set(first)), 4)
        self.assertEqual(first, digests("77"))

    def test_a_trace_changes_nothing(self) -> None:
        quiet, told = play(draw(305)), play(draw(305), traced=True)
        self.assertEqual(quiet.digest, told.digest)
        self.assertEqual(quiet.trace, [])
        self.assertTrue(any("subscribed" in line for line in told.trace))

    def test_a_failing_life_names_the_command_that_replays_it(self) -> None:
        plan = draw(13).only((11, 17))
        self.assertEqual(command(draw(13), True), "make simulate SEED=13")
        self.assertEqual(command(plan, False), "make simulate SEED=13 STEPS=11,17")
        made = (ROOT / "Makefile").read_text()
        line = re.search(r"^simulate:.*\n\t(.*)$", made, re.MULTILINE)
        assert line is not None
        for key in ("SECONDS", "SEED", "STEPS"):
            self.assertIn(f"$({key})", line[1])


class Shrinking(SynchronousTestCase):
    """Only the steps that are needed for the failure remain."""

    def outcome(self, plan: Plan) -> Outcome:
        numbers = {step.number for step in plan.steps}
        self.played += 1
        wrong = (
            Violation("missing", "")
            if {3, 11} <= numbers
            else Violation("other", "")
            if 3 in numbers
            else None
        )
        return Outcome(plan, wrong, "", Counter(), [], 0, 0, 0.0)

    def test_the_two_that_matter(self) -> None:
        self.played = 0
        plan = next(plan for plan in map(draw, range(100)) if len(plan.steps) > 30)
        small = shrink(plan, 60.0, self.outcome)
        self.assertEqual([step.number for step in small.steps], [3, 11])
        self.assertLess(self.played, 60)

    def test_one_in_which_nothing_is_wrong_stays(self) -> None:
        self.played = 0
        plan = draw(305).without({"publish"})
        self.assertEqual(shrink(plan.only(()), 60.0, self.outcome).steps, ())
