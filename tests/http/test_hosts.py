from twisted.trial.unittest import TestCase

from notify.http.answers import Refused
from notify.http.hosts import Hosts
from tests.support.http import Client, Node, request_bytes


class HostsTest(TestCase):
    def test_what_can_be_nobody_else_s_is_good(self) -> None:
        for host in (
            "",
            "127.0.0.1",
            "127.0.0.1:8081",
            "10.0.0.7:8081",
            "[::1]:8081",
            "[fe80::1%25eth0]",
            "localhost:8081",
            "LOCALHOST",
            "localhost.",
            "notify:8081",
            "node1.internal",
            "printer.local:1",
            "notify.default.svc",
            "notify.default.svc.cluster.local",
            "node1.prod.example:8081",
            "Node1.Prod.Example.",
        ):
            Hosts(["node1.prod.example"]).check(host)

    def test_what_a_stranger_may_have_registered_is_not(self) -> None:
        for host in (
            "evil.example",
            "evil.example:8081",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "local.evil.example",
            "prod.example",
            "x.node1.prod.example",
            "node1.prod.example.evil.example",
            "0x7f.1",
            "evil.example..",
        ):
            with self.assertRaises(Refused) as caught:
                Hosts(["node1.prod.example"]).check(host)
            self.assertEqual((caught.exception.status, caught.exception.code), (403, "forbidden"))


class MetricsTest(TestCase):
    def get(self, target: str, host: str):
        client = Client(Node().site)
        client.send(request_bytes("GET", target, None, {"Host": host}))
        return client.received()[0]

    def test_metrics_are_no_stranger_s(self) -> None:
        self.assertEqual(self.get("/metrics", "127.0.0.1:8081").status, 200)
        refused = self.get("/metrics", "evil.example:8081")
        self.assertEqual((refused.status, refused.code), (403, "forbidden"))
        self.assertNotIn(b"evil", refused.body)

    def test_the_host_of_the_target_comes_first(self) -> None:
        self.assertEqual(self.get("http://evil.example/metrics", "127.0.0.1").status, 403)
        self.assertEqual(self.get("http://127.0.0.1/metrics", "evil.example").status, 200)

    def test_health_is_for_everyone_who_gets_here(self) -> None:
        for path in ("/health", "/health/live", "/health/ready"):
            self.assertIn(self.get(path, "evil.example").status, (200, 503))
