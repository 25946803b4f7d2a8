from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import TestCase

from notify import __version__
from notify.observe.metrics import Metrics
from tests.support.http import Client, Node, request_bytes


def parse(text: bytes) -> dict:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


class MetricsTest(TestCase):
    def test_two_instances_do_not_know_of_each_other(self) -> None:
        one, other = Metrics(), Metrics()
        one.accepted.inc()
        self.assertEqual(other.registry.get_sample_value("notify_connections_accepted_total"), 0)

    def test_names_the_version_and_describes_the_process(self) -> None:
        families = parse(Metrics("uvloop").render())
        (build,) = families["notify_build_info"].samples
        self.assertEqual(build.labels, {"version": __version__, "event_loop": "uvloop"})
        metrics = Metrics("uvloop")
        metrics.fans_out_in("C")
        (build,) = parse(metrics.render())["notify_build_info"].samples
        self.assertEqual(build.labels, {"version": __version__, "event_loop": "uvloop", "fan_out": "C"})
        for name in (
            "process_resident_memory_bytes",
            "process_open_fds",
            "python_info",
            "python_gc_collections",
        ):
            self.assertIn(name, families)

    def test_every_metric_of_ours_is_described(self) -> None:
        for name, family in parse(Metrics().render()).items():
            self.assertTrue(family.documentation, name)


class EndpointTest(TestCase):
    def test_serves_what_prometheus_reads(self) -> None:
        node = Node()
        node.metrics.delivery_seconds.observe(0.003)
        node.metrics.closes.labels("4001").inc()
        response = node.call("GET", "/metrics", auth=False)
        self.assertEqual(response.status, 200)
        self.assertTrue(response["Content-Type"].startswith("text/plain; version="))
        families = parse(response.body)
        self.assertEqual(families["notify_delivery_seconds"].type, "histogram")
        (close,) = [s for s in families["notify_closes"].samples if s.name.endswith("_total")]
        self.assertEqual((close.labels, close.value), ({"code": "4001"}, 1.0))

    def test_says_whether_the_broker_can_be_used_now(self) -> None:
        node = Node()
        self.assertIn(b"\nnotify_broker_up 1.0\n", node.call("GET", "/metrics").body)
        node.broker.stop()
        self.assertIn(b"\nnotify_broker_up 0.0\n", node.call("GET", "/metrics").body)

    def test_no_label_carries_what_a_client_chose(self) -> None:
        node = Node()
        counts = []
        for _ in range(2):
            self.annoy(node)
            text = node.call("GET", "/metrics").body
            self.assertNotIn(b"sesame", text.lower())
            counts.append(sum(len(family.samples) for family in parse(text).values()))
        # the request for /metrics is counted itself from the second time on
        ours = sum(b'path="/metrics"' in line for line in text.splitlines())
        self.assertEqual(counts[1] - ours, counts[0])
        requests = [s for s in parse(text)["notify_http_requests"].samples if s.name.endswith("_total")]
        self.assertEqual(
            {(s.labels["path"], s.labels["status"]): s.value for s in requests},
            {
                ("/metrics", "200"): 1,
                ("no_such_path", "404"): 200,
                ("no_such_path", "400"): 100,
                ("/v1/publish", "422"): 100,
            },
        )

    def annoy(self, node: Node) -> None:
        for n in range(50):
            node.call("GET", f"/sesame/{n}?sesame={n}")
            node.call(f"SESAME{n}", f"/v1/sesame{n}", headers={"X-Request-Id": f"sesame{n}"})
            node.publish({"subject": f"sesame.{n}", "payload": {"sesame": n}})
            client = Client(node.site)
            client.send(request_bytes("GET", f"/sesame{n}").replace(b"Host", b"sesame\x00"))
