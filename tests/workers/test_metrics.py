"""The metrics of all processes, combined as those of one server."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from notify.observe.metrics import Metrics
from notify.workers.metrics import Tally, dump


class Combined(SynchronousTestCase):
    def setUp(self) -> None:
        self.first, self.one, self.other = Metrics(), Metrics(), Metrics()
        self.tally = Tally()

    def told(self, missing: tuple[int, ...] = ()) -> dict[tuple[str, str], float]:
        answered = [
            self.tally.told(number, dump(m.registry))
            for number, m in ((1, self.one), (2, self.other))
            if number not in missing
        ]
        text = self.tally.render(dump(self.first.registry), answered, [1, 2]).decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
                self.assertNotIn(key, found)
                found[key] = sample.value
        return found

    def test_what_is_counted_is_summed_and_told_of_each(self) -> None:
        self.first.published.labels("ok").inc(7)
        self.one.connections.set(3)
        self.other.connections.set(4)
        self.one.closes.labels("1000").inc(2)
        self.other.closes.labels("1000").inc(5)
        self.other.closes.labels("4001").inc()
        told = self.told()
        self.assertEqual(told["notify_published_total", "result=ok"], 7)
        self.assertEqual(told["notify_connections", ""], 7)
        self.assertEqual(told["notify_closes_total", "code=1000"], 7)
        self.assertEqual(told["notify_closes_total", "code=4001"], 1)
        self.assertEqual(told["notify_worker_connections", "worker=1"], 3)
        self.assertEqual(told["notify_worker_closes_total", "code=1000,worker=2"], 5)

    def test_histograms_are_summed_bucket_by_bucket(self) -> None:
        for metrics, seconds in ((self.one, 0.003), (self.other, 0.003), (self.other, 0.3)):
            metrics.delivery_seconds.observe(seconds)
        told = self.told()
        self.assertEqual(told["notify_delivery_seconds_bucket", "le=0.005"], 2)
        self.assertEqual(told["notify_delivery_seconds_bucket", "le=+Inf"], 3)
        self.assertEqual(told["notify_delivery_seconds_count", ""], 3)
        self.assertEqual(told["notify_worker_delivery_seconds_bucket", "le=0.005,worker=2"], 1)

    def test_where_a_sum_says_nothing_it_is_the_worst_or_the_first(self) -> None:
        for metrics in (self.first, self.one):
            metrics.broker_up.set(1)
        self.other.draining.set(1)
        self.first.nodes.set(3)
        self.one.nodes.set(3)
        self.first.sockets.set(9)
        told = self.told()
        self.assertEqual(told["notify_broker_up", ""], 0)
        self.assertEqual(told["notify_draining", ""], 1)
        self.assertEqual(told["notify_nodes", ""], 3)
        self.assertEqual(told["notify_sockets", ""], 9)
        self.assertEqual([value for (name, _), value in told.items() if name == "notify_build_info"], [1])

    def test_a_process_is_the_first_and_each_worker_itself(self) -> None:
        told = self.told()
        fds = told["process_max_fds", ""]
        self.assertEqual(told["notify_worker_process_max_fds", "worker=1"], fds)
        self.assertIn(("notify_worker_process_cpu_seconds_total", "worker=2"), told)

    def test_one_that_has_not_told_is_named(self) -> None:
        self.one.connections.set(3)
        told = self.told(missing=(2,))
        self.assertEqual((told["notify_worker_up", "worker=1"], told["notify_worker_up", "worker=2"]), (1, 0))
        self.assertEqual(told["notify_connections", ""], 3)

    def test_what_counts_up_does_not_fall_when_one_does_not_answer_or_ends(self) -> None:
        def sums(missing: tuple[int, ...] = ()) -> tuple[float, float, float]:
            told = self.told(missing)
            closes, slow = "notify_closes_total", "notify_delivery_seconds_bucket"
            return told[closes, "code=1000"], told[slow, "le=+Inf"], told["notify_connections", ""]

        self.one.closes.labels("1000").inc(2)
        for metrics in (self.one, self.other):
            metrics.closes.labels("1000").inc(5)
            metrics.delivery_seconds.observe(0.3)
            metrics.connections.set(4)
        self.assertEqual(sums(), (12, 2, 8))
        self.assertEqual(sums(missing=(2,)), (12, 2, 4))
        self.assertEqual(sums(), (12, 2, 8))
        for _ in range(2):  # the worker dies, and then the one that replaces it
            self.tally.ended(2)
            self.tally.ended(2)
            self.assertEqual(sums(missing=(2,)), (12, 2, 4))
            self.other = Metrics()
            self.assertEqual(sums(), (12, 2, 4))
        self.other.closes.labels("1000").inc()
        self.assertEqual(sums(), (13, 2, 4))
        self.assertEqual(self.told()["notify_worker_closes_total", "code=1000,worker=2"], 1)
