"""Faults: how they are written, and how they are drawn from a seed."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from notify.chaos import local, plan
from notify.chaos.plan import Fault


class Parse(SynchronousTestCase):
    def test_a_command_and_its_time(self) -> None:
        self.assertEqual(
            plan.parse("at=5s systemctl restart notify@2"), Fault(5, "systemctl restart notify@2")
        )

    def test_what_undoes_it(self) -> None:
        self.assertEqual(
            plan.parse(" at=500ms kill -STOP 7 / undo=1.5s kill -CONT 7"),
            Fault(0.5, "kill -STOP 7", 1.5, "kill -CONT 7"),
        )

    def test_a_slash_belongs_to_the_command(self) -> None:
        self.assertEqual(plan.parse("at=1s ls / /tmp").do, "ls / /tmp")

    def test_what_is_none(self) -> None:
        for text in ("", "restart", "at=5s", "at=soon ls", "at=5s a / undo=5s b", "at=5s a / undo=x b"):
            with self.assertRaises(ValueError):
                plan.parse(text)

    def test_written_again(self) -> None:
        for text in ("at=5s kill node-2", "at=0.5s pause nats-1 / undo=8s resume nats-1"):
            self.assertEqual(str(plan.parse(text)), text)


class Draw(SynchronousTestCase):
    def test_one_seed_is_one_plan(self) -> None:
        self.assertEqual(plan.draw(7, 60), plan.draw(7, 60))
        self.assertNotEqual(plan.draw(7, 60), plan.draw(8, 60))

    def test_every_fault_is_one_of_the_set_in_time_and_can_be_given_by_hand(self) -> None:
        for seed in range(200):
            for fault in plan.draw(seed, 20):
                local.check(fault.do)
                if fault.undo_at is not None:
                    local.check(fault.undo)
                self.assertLess(fault.at, 20)
                self.assertLess(fault.undo_at or 0, 20)
                self.assertEqual(plan.parse(str(fault)), fault)

    def test_what_is_broken_is_mended_before_the_next_server_breaks(self) -> None:
        for seed in range(100):
            broken = [fault for fault in plan.draw(seed, 60) if "-" in fault.do or fault.do.endswith("nodes")]
            self.assertGreater(len(broken), 3)
            for one, other in pairwise(broken):
                self.assertGreater(other.at, one.undo_at or one.at)

    def test_every_kind_comes(self) -> None:
        found = {fault.do.split("-")[0] for fault in plan.draw(1, 120)}
        self.assertEqual(len(found), 12, found)

    def test_long_runs_have_a_bound(self) -> None:
        self.assertLessEqual(len(plan.draw(1, 3600)), plan.MOST)

    def test_what_cannot_be_done_to_the_built_in_set(self) -> None:
        for command in (
            "kill node-4",
            "cut node-1",
            "kill clients",
            "kill link-1",
            "reboot",
            "kill node-1; rm -r x",
            "",
        ):
            with self.assertRaises(ValueError):
                local.check(command)
