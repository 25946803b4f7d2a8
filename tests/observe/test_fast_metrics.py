"""The lock-free metrics look to a scrape like those that prometheus_client keeps itself."""

from __future__ import annotations

from math import inf, nan
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from twisted.trial.unittest import SynchronousTestCase

from notify.observe.fast_metrics import FastCounter, FastHistogram

BUCKETS = (0.005, 0.1, 2.5)


class Scrapes(SynchronousTestCase):
    """Uses both kinds in the same way, then compares the two scrapes."""

    def setUp(self) -> None:
        self.patch(__import__("time"), "time", lambda: 1_700_000_000.25)
        self.ours, self.theirs = CollectorRegistry(), CollectorRegistry()

    def assert_alike(self) -> None:
        ours, theirs = generate_latest(self.ours).decode(), generate_latest(self.theirs).decode()
        self.assertEqual(sorted(ours.splitlines()), sorted(theirs.splitlines()))

    def counters(self, *labels: str) -> tuple[Any, Any]:
        return FastCounter("n", "Some.", labels, registry=self.ours), Counter(
            "n", "Some.", labels, registry=self.theirs
        )

    def histograms(self, *labels: str) -> tuple[Any, Any]:
        ours = FastHistogram("h", "Some.", labels, buckets=BUCKETS, registry=self.ours)
        return ours, Histogram("h", "Some.", labels, buckets=BUCKETS, registry=self.theirs)

    def test_a_counter(self) -> None:
        ours, theirs = self.counters()
        for counter in (ours.labels(), theirs):
            counter.inc()
            counter.inc(2.5)
            counter.inc(0)
        self.assert_alike()

    def test_a_counter_with_labels(self) -> None:
        for counter in self.counters("path", "status"):
            counter.labels("/a", "200").inc(3)
            counter.labels('/"\\\n', "404").inc()
            counter.labels("/a", "200").inc()
            counter.labels("/b", "200")
        self.assert_alike()

    def test_a_histogram_on_every_side_of_its_bounds(self) -> None:
        ours, theirs = self.histograms()
        for histogram in (ours.labels(), theirs):
            for value in (-1.0, 0.0, 0.004, 0.005, 0.0050001, 0.1, 2.5, 2.6, inf):
                histogram.observe(value)
        self.assert_alike()

    def test_a_histogram_with_labels(self) -> None:
        for histogram in self.histograms("path"):
            for path, value in (("/a", 0.01), ("/b", 3.0), ("/a", 0.2)):
                histogram.labels(path).observe(value)
            histogram.labels("/c")
        self.assert_alike()

    def test_what_counted_nothing_yet(self) -> None:
        self.counters("path")
        self.histograms("path")
        self.assert_alike()

    def test_a_name_is_given_once(self) -> None:
        FastCounter("n", "Some.", registry=self.ours)
        with self.assertRaises(ValueError):
            FastCounter("n", "Some.", registry=self.ours)
        FastHistogram("h", "Some.", buckets=BUCKETS, registry=self.ours)
        with self.assertRaises(ValueError):
            Counter("h_count", "Some.", registry=self.ours)

    def test_no_value_is_out_of_bounds(self) -> None:
        ours, _ = self.histograms()
        spread = ours.labels()
        for value in (nan, inf, -inf, 1e300):
            spread.observe(value)
        self.assertEqual(sum(spread.counts), 4)
