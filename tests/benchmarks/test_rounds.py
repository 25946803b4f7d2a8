"""Which rounds of a benchmark hold, and that a round that does not hold is repeated and counted."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.rounds import AGAIN, BUSY, LATE, hold, lateness, spoilt


class Lateness(SynchronousTestCase):
    """One publish is due each second, and none takes long unless ``took`` says so."""

    def share(self, began: list[float], took: list[float] | None = None) -> float:
        due = [float(n) for n in range(len(began))]
        return lateness(due, began, took or [0.0] * len(due), 1.0)

    def test_in_time(self) -> None:
        self.assertEqual(self.share([0, 1.5, 2.9, 4]), 0)
        self.assertEqual(self.share([]), 0)

    def test_all_that_come_together_behind_a_pause_are_late(self) -> None:
        self.assertEqual(self.share([0, 5, 5, 5, 5, 5]), 3 / 6)

    def test_what_the_server_holds_up_is_not_the_publishers_doing(self) -> None:
        self.assertEqual(self.share([0, 5, 5, 5, 5, 5], [5, 0, 0, 0, 0, 0]), 0)

    def test_what_the_publisher_adds_to_that_is(self) -> None:
        self.assertEqual(self.share([0, 7, 7, 7, 7, 7], [5, 0, 0, 0, 0, 0]), 5 / 6)


class Spoilt(SynchronousTestCase):
    def test_each_reason(self) -> None:
        holds = {"publisher_late_share": LATE, "publisher_cpu_share": BUSY, "generator_cpu_share": BUSY}
        self.assertEqual(spoilt(holds), "")
        self.assertEqual(spoilt({**holds, "publisher_late_share": LATE + 0.01}), "the publisher was late")
        self.assertEqual(spoilt({**holds, "publisher_cpu_share": BUSY + 0.01}), "the publisher was late")
        self.assertEqual(
            spoilt({**holds, "generator_cpu_share": BUSY + 0.01}), "the load generator was too busy"
        )

    def test_what_could_not_be_measured_is_not_tried_again(self) -> None:
        self.assertEqual(spoilt({"error": "nothing came"}), "")


class Hold(SynchronousTestCase):
    def run_with(self, *reasons: str) -> tuple[dict[str, Any], int]:
        """The figures if the rounds are spoilt for these reasons (the last one repeats), and how many rounds ran."""
        runs: list[dict[str, Any]] = []

        def run() -> dict[str, Any]:
            figures = {"number": len(runs), "spoilt": reasons[min(len(runs), len(reasons) - 1)]}
            runs.append(figures)
            return figures

        return hold(run), len(runs)

    def test_a_round_that_holds_is_kept(self) -> None:
        self.assertEqual(self.run_with(""), ({"number": 0, "spoilt": "", "thrown_away": []}, 1))

    def test_a_spoilt_one_is_thrown_away_and_counted(self) -> None:
        figures, runs = self.run_with("late", "busy", "")
        self.assertEqual(figures, {"number": 2, "spoilt": "", "thrown_away": ["late", "busy"]})
        self.assertEqual(runs, 3)

    def test_not_for_ever_and_the_last_one_says_so(self) -> None:
        figures, runs = self.run_with("late")
        self.assertEqual(runs, AGAIN + 1)
        self.assertEqual(figures, {"number": AGAIN, "spoilt": "late", "thrown_away": ["late"] * AGAIN})

    def test_an_error_is_kept_as_it_is(self) -> None:
        self.assertEqual(hold(lambda: {"error": "no nginx"}), {"error": "no nginx", "thrown_away": []})
