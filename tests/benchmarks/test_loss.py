"""The loss benchmark's verdicts, schedules and report; and a run of it on notify for a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from benchmarks.loss import report
from benchmarks.loss.ledger import TOLD, Counts, Ledger, judge
from benchmarks.loss.run import Load
from benchmarks.loss.schedule import INSTANT, OUTAGE, SCHEDULES, SILENT, draw
from tests.support.programs import ROOT, need


class Judgement(SynchronousTestCase):
    """What one client received, compared with what was due: 1 to 5."""

    def judge(self, *log: int) -> tuple[set[int], set[int], int, int]:
        verdict = judge(log, frozenset(range(1, 6)))
        return set(verdict.missing - verdict.told), set(verdict.told), verdict.doubled, verdict.disordered

    def test_all_once_and_in_order(self) -> None:
        self.assertEqual(self.judge(1, 2, 3, 4, 5), (set(), set(), 0, 0))

    def test_a_hole_that_nobody_speaks_of_is_silent(self) -> None:
        self.assertEqual(self.judge(1, 2, 5), ({3, 4}, set(), 0, 0))

    def test_a_notice_in_the_hole_tells_it(self) -> None:
        self.assertEqual(self.judge(1, 2, TOLD, 5), (set(), {3, 4}, 0, 0))

    def test_a_notice_elsewhere_does_not(self) -> None:
        self.assertEqual(self.judge(1, TOLD, 2, 5), ({3, 4}, set(), 0, 0))
        self.assertEqual(self.judge(1, 4, TOLD, 5), ({2, 3}, set(), 0, 0))

    def test_a_notice_at_the_beginning_and_at_the_end(self) -> None:
        self.assertEqual(self.judge(TOLD, 3, TOLD), (set(), {1, 2, 4, 5}, 0, 0))

    def test_two_notices_in_one_hole(self) -> None:
        self.assertEqual(self.judge(1, TOLD, TOLD, 5), (set(), {2, 3, 4}, 0, 0))

    def test_a_notice_lasts_until_something_new_comes(self) -> None:
        self.assertEqual(self.judge(1, 2, TOLD, 2, 5), (set(), {3, 4}, 1, 0))

    def test_a_notice_with_nothing_missing_costs_nothing(self) -> None:
        self.assertEqual(self.judge(1, 2, TOLD, 3, 4, 5), (set(), set(), 0, 0))

    def test_doubled_and_out_of_order(self) -> None:
        self.assertEqual(self.judge(1, 2, 2, 3, 1, 4, 5), (set(), set(), 2, 0))
        self.assertEqual(self.judge(1, 3, 2, 5, 4), (set(), set(), 0, 2))

    def test_what_was_not_acknowledged_may_come_and_need_not(self) -> None:
        self.assertEqual(judge([1, 2, 3], frozenset({1, 3})).missing, set())
        self.assertEqual(judge([1, 3], frozenset({1, 3})).missing, set())


class Counting(SynchronousTestCase):
    """Counts over all clients of a run."""

    def setUp(self) -> None:
        self.ledger = Ledger({"a": 1, "b": 1, "c": 2})
        for client in self.ledger.rooms:
            self.ledger.connected(client)
        for room in (1, 1, 1, 2):
            self.ledger.acknowledged(room, self.ledger.number(room))

    def receive(self, client: str, *numbers: int) -> None:
        for number in numbers:
            self.ledger.received(client, self.ledger.rooms[client], number)

    def test_each_message_is_due_to_each_client_of_its_room(self) -> None:
        self.receive("a", 1, 2, 3)
        self.receive("b", 1, 3)
        self.receive("c", 1)
        self.assertEqual(self.ledger.counts(), Counts(published=4, due=7, delivered=6, silent=1))

    def test_lost_is_told_or_silent(self) -> None:
        self.receive("a", 1)
        self.ledger.told("a")
        self.receive("a", 3)
        self.receive("b", 3)
        self.receive("c", 1)
        self.assertEqual(
            self.ledger.counts(), Counts(published=4, due=7, delivered=4, told=1, silent=2, notices=1)
        )

    def test_an_unacknowledged_message_is_not_due(self) -> None:
        self.ledger.number(2)
        self.receive("c", 1, 2)
        counts = self.ledger.counts()
        self.assertEqual((counts.published, counts.due, counts.delivered, counts.foreign), (4, 7, 1, 0))

    def test_what_nobody_published_and_rooms_of_others_are_foreign(self) -> None:
        self.receive("a", 9)
        self.ledger.received("a", 2, 1)
        self.assertEqual(self.ledger.counts().foreign, 2)

    def test_who_has_not_the_newest_is_away(self) -> None:
        self.receive("a", 3)
        self.receive("b", 2)
        self.assertEqual(self.ledger.counts().away, 2)

    def test_every_connection_but_the_first_is_a_reconnect(self) -> None:
        self.ledger.connected("a")
        self.ledger.connected("a")
        self.assertEqual(self.ledger.counts().reconnects, 2)


class Schedules(SynchronousTestCase):
    """Which fault happens when."""

    def test_one_seed_draws_one_schedule(self) -> None:
        for name in SCHEDULES:
            self.assertEqual(draw(name, 60, 1), draw(name, 60, 1))
            self.assertNotEqual(draw(name, 60, 1), draw(name, 60, 2))

    def test_faults_do_not_overlap_and_leave_time_to_come_back(self) -> None:
        for name in SCHEDULES:
            for seed in range(20):
                for seconds, calm in ((9.0, 3.0), (60.0, 12.0), (300.0, 12.0)):
                    faults = draw(name, seconds, seed)
                    ends = [fault.at + OUTAGE for fault in faults]
                    self.assertTrue(faults)
                    self.assertLess(faults[-1].at, seconds - calm)
                    if seconds >= 60:
                        self.assertTrue(
                            all(end < fault.at for end, fault in zip(ends, faults[1:], strict=False))
                        )

    def test_cuts_are_instant_and_silent_by_turns(self) -> None:
        kinds = [fault.kind for fault in draw("cuts", 60, 1)]
        self.assertEqual(kinds[:4], [INSTANT, SILENT, INSTANT, SILENT])

    def test_every_server_has_its_turn(self) -> None:
        for name in ("restart", "kill"):
            self.assertEqual(
                [(fault.kind, fault.turn) for fault in draw(name, 60, 1)], [(name, n) for n in range(3)]
            )


class ThroughIt(TestCase):
    """A run on notify with the memory broker, for a few seconds."""

    timeout = 120

    async def test_notify_loses_nothing_behind_a_cut_and_it_is_written_down(self) -> None:
        need(find_spec("matplotlib"), "matplotlib is missing: pip install -e '.[bench]'")
        folder = Path(self.mktemp())
        command = [sys.executable, "-m", "benchmarks.loss", "--into", str(folder.absolute())]
        command += ["--peers", "notify (memory)", "--schedules", "cuts"]
        command += ["--seconds", "5", "--clients", "4", "--rooms", "2"]
        done: Any = await deferToThread(
            subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        written = json.loads((folder / "loss.json").read_text())
        self.assertEqual(len(written["faults"]["cuts"]), 1)
        counts = written["results"]["cuts"]["notify (memory)"]
        self.assertGreater(counts["due"], 0)
        self.assertGreater(counts["reconnects"], 0)
        self.assertEqual(counts["delivered"], counts["due"])
        self.assertEqual(counts["doubled"] + counts["disordered"] + counts["foreign"] + counts["away"], 0)
        self.assertIn(f"| notify (memory) | {counts['published']:,} | ", (folder / "loss.md").read_text())
        self.assertIn("<svg", (folder / "loss.svg").read_text())


class Report(SynchronousTestCase):
    """The tables of the report."""

    def test_a_row_has_the_counts_and_shares_of_what_was_lost(self) -> None:
        counts = Counts(published=1000, due=4000, delivered=3900, told=60, silent=40)
        shown = report.table("cuts", {"ws": counts}, Load())
        self.assertIn(
            "| ws | 1,000 | 4,000 | 3,900 | 0 | 0 | 60 (1.5 %) | **40** (1.0 %) | 0 | 0 | 0.0 |", shown
        )

    def test_who_was_not_measured_is_in_the_table_with_the_reason(self) -> None:
        shown = report.table("kill", {"Nchan": "Nchan needs nginx: apt-get install nginx\nand more"}, Load())
        self.assertIn("| Nchan | not measured: Nchan needs nginx: apt-get install nginx | | ", shown)
