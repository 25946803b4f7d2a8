"""The benchmarks' tables: which figure is compared with which bar, and what a reader is told about a row."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import report
from benchmarks.others import SERVERS
from benchmarks.targets import BARS, needed, table
from benchmarks.work import WORKS


def rounds(key: str, *values: float, **more: Any) -> list[dict[str, Any]]:
    return [{key: value, **more} for value in values]


class Targets(SynchronousTestCase):
    def rows(self, results: dict[str, Any]) -> list[str]:
        return table(results).splitlines()[2:]

    def test_a_ratio_is_the_median_of_those_within_a_round(self) -> None:
        # The machine was three times as slow in the second round: each figure moves, the ratio does not.
        results = {"chat-1000": {"floor": rounds("cpu_us", 4, 12, 4), "notify": rounds("cpu_us", 5, 15, 8)}}
        self.assertEqual(
            self.rows(results),
            ["| chat of 1,000: CPU against the floor in C | 1.25 (1.25-2.00) | 1.25 | reached |"],
        )

    def test_above_the_bar(self) -> None:
        results = {
            "pairs": {"notify": rounds("message_us", 118), "notify (JetStream)": rounds("message_us", 205)}
        }
        self.assertEqual(
            self.rows(results),
            [
                "| pairs: CPU a message | 118 us | 117 us | **not reached** |",
                "| pairs on JetStream: CPU of the node a message | 205 us | 205 us | reached |",
            ],
        )

    def test_what_is_missing_is_not_reached_by_silence(self) -> None:
        results = {"tens": {"notify": rounds("cpu_us", 10), "Nchan": [{"error": "no nginx"}]}}
        self.assertEqual(
            self.rows(results),
            [
                "| chats of ten, lists of 20: CPU against Nchan |  | 0.9 | not measured |",
                "| chats of ten: CPU on JetStream against memory |  | 1.2 | not measured |",
            ],
        )

    def test_each_bar_is_about_a_work_and_servers_that_there_are(self) -> None:
        self.assertEqual({bar.work for bar in BARS}, set(needed()))
        for work, servers in needed().items():
            self.assertLessEqual(set(servers), set(WORKS[work].servers) & set(SERVERS))


class Overview(SynchronousTestCase):
    def test_what_a_second_of_cpu_makes(self) -> None:
        results = {
            "chat-1000": {"floor": rounds("cpu_us", 4, 5, 8), "Nchan": [{"error": "no nginx"}]},
            "publish": {"notify": rounds("request_us", 80)},
            "tens": {"notify": rounds("cpu_us", 10)},
        }
        self.assertEqual(report.capacity(results), {"chat-1000": {"floor": 200}, "tens": {"notify": 100}})

    def test_the_works_that_it_shows_are_there(self) -> None:
        self.assertLessEqual(set(report.OVERVIEW), set(WORKS))


class Glance(SynchronousTestCase):
    def test_one_row_a_server_and_a_star_where_there_is_a_remark(self) -> None:
        late = rounds("cpu_us", 30, offered=100, throughput=50)
        results = {
            "tens": {"floor": rounds("cpu_us", 8, 9, 11), "Nchan": late, "Node ws": [{"error": "no node"}]},
            "idle": {"notify": rounds("accept_us", 170, memory=5120), "floor": rounds("accept_us", 20)},
            "publish": {"notify": rounds("request_us", 80)},
        }
        self.assertEqual(
            report.glance(results).splitlines(),
            [
                "| | chats of ten | accept a client | KiB a client |",
                "| --- | ---: | ---: | ---: |",
                "| floor | 9.0 | 20 |  |",
                "| Nchan | 30.0* |  |  |",
                "| **notify** |  | 170 | 5.0 |",
            ],
        )

    def test_the_works_that_it_shows_are_there(self) -> None:
        self.assertLessEqual(set(report.GLANCE), set(WORKS))


class Table(SynchronousTestCase):
    def test_columns_without_a_figure_are_left_out(self) -> None:
        text = report.table(
            "publish", "Publishes", {"uvicorn": rounds("request_us", 40), "notify": rounds("request_us", 80)}
        )
        self.assertIn("| | CPU us/request | against uvicorn | |", text)
        self.assertIn("| **notify** | 80.0 | 2.00 |  |", text)

    def test_nats_server_has_a_column_of_its_own(self) -> None:
        text = report.table(
            "publish",
            "Publishes",
            {
                "uvicorn": rounds("request_us", 40),
                "notify (JetStream)": rounds("request_us", 100, store_us=25),
            },
        )
        self.assertIn("| **notify (JetStream)** | 100.0 | 2.50 | 25.0 |  |", text)
        self.assertIn("| uvicorn | 40.0 | 1.00 |  |  |", text)

    def test_what_is_missing_is_named(self) -> None:
        text = report.table("publish", "Publishes", {"uvicorn": [{"error": "no uvicorn"}]})
        self.assertIn("not measured: no uvicorn |", text)

    def test_rounds_that_were_thrown_away_are_told(self) -> None:
        held = {"thrown_away": ["the publisher was late"], "spoilt": ""}
        kept = {"thrown_away": ["the publisher was late"] * 2, "spoilt": "the publisher was late"}
        self.assertEqual(report.doubts([{}, held]), "thrown away and repeated: 1")
        self.assertEqual(
            report.doubts([held, kept]),
            "thrown away and repeated: 3; kept all the same: the publisher was late",
        )

    def test_every_server_of_a_work_is_known(self) -> None:
        for work in WORKS.values():
            self.assertLessEqual(set(work.servers), set(SERVERS), work.name)
