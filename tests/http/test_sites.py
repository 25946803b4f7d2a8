import os

from twisted.internet.defer import succeed
from twisted.trial.unittest import TestCase

from notify.http import public_site
from notify.interfaces import BrokerStatus
from tests.support.http import Client, FakeBroker, Node, request_bytes, temporary_folder


class HealthTest(TestCase):
    def setUp(self) -> None:
        self.node = Node(broker=FakeBroker(lambda: succeed(None)))

    def status(self, path: str) -> tuple[int, str]:
        response = self.node.call("GET", path, auth=False)
        return response.status, response.json["status"]

    def test_readiness_follows_start_broker_and_drain(self) -> None:
        for path in ("/health", "/health/ready"):
            self.assertEqual(self.status(path), (503, "starting"))
        self.node.up()
        for path in ("/health", "/health/ready"):
            self.assertEqual(self.status(path), (200, "ok"))
        self.node.broker.ready = BrokerStatus(False, "reconnecting")
        self.assertEqual(self.status("/health/ready"), (503, "broker unavailable"))
        self.node.broker.ready = BrokerStatus(True, "back")
        self.assertEqual(self.status("/health/ready"), (200, "ok"))
        self.node.health.drain()
        self.assertEqual(self.status("/health/ready"), (503, "draining"))

    def test_shows_broker_listeners_and_drain(self) -> None:
        self.node.up()
        self.assertEqual(
            self.node.call("GET", "/health").json,
            {
                "status": "ok",
                "ready": True,
                "broker": {"ready": True, "detail": "fine"},
                "listeners": {"public": True, "internal": True},
                "draining": False,
            },
        )

    def test_is_alive_whatever_else_is_so(self) -> None:
        self.assertEqual(self.status("/health/live"), (200, "ok"))
        self.node.health.drain()
        self.assertEqual(self.status("/health/live"), (200, "ok"))


class PublicTest(TestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.node.up()
        self.folder = temporary_folder(self)
        (self.folder / "demo").mkdir()
        (self.folder / "secret.txt").write_text("sesame")
        (self.folder / "demo" / "client").mkdir()
        for name, text in (("index.html", "<p>demo"), ("client/machine.js", "export"), (".hidden", "sesame")):
            (self.folder / "demo" / name).write_text(text)
        os.symlink(self.folder.resolve() / "secret.txt", self.folder / "demo" / "link.txt")

    def site(self, **more):
        return public_site(
            reactor=self.node.clock,
            health=self.node.health,
            metrics=self.node.metrics,
            timeout=lambda: 10,
            **more,
        )

    def get(self, path: str, site=None, method: str = "GET"):
        client = Client(site or self.site())
        client.send(request_bytes(method, path))
        return client.received(head=method == "HEAD")[0]

    def test_shows_health_and_nothing_else(self) -> None:
        self.assertEqual((self.get("/health").status, self.get("/health").json), (200, {"status": "ok"}))
        self.node.health.drain()
        self.assertEqual(
            (self.get("/health").status, self.get("/health").json), (503, {"status": "unavailable"})
        )
        for path in ("/", "/metrics", "/openapi.json", "/health/ready", "/v1/history", "/ws", "/index.html"):
            self.assertEqual(self.get(path).status, 404, path)

    def test_serves_the_demo_page_where_it_is_asked_for(self) -> None:
        site = self.site(demo=self.folder / "demo")
        page = self.get("/", site)
        self.assertEqual(
            (page.status, page.body, page["Content-Type"]), (200, b"<p>demo", "text/html; charset=utf-8")
        )
        self.assertEqual(page["Cache-Control"], "no-cache")
        self.assertEqual(self.get("/index.html", site).body, b"<p>demo")
        script = self.get("/client/machine.js", site)
        self.assertEqual((script.body, script["Content-Type"]), (b"export", "text/javascript; charset=utf-8"))
        self.assertEqual(self.get("/index.html", site, "HEAD")["Content-Length"], "7")
        self.assertEqual(self.get("/health", site).json, {"status": "ok"})

    def test_no_path_leads_out_of_the_demo_folder(self) -> None:
        site = self.site(demo=self.folder / "demo")
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "//etc/passwd",
            "/.hidden",
            "/./index.html",
            "/link.txt",
            "/demo/../index.html",
            "/index.html/",
            "/index.html%00",
            "/..\\secret.txt",
            "/%c0%ae%c0%ae/secret.txt",
            "http://x/../secret.txt",
        ):
            response = self.get(path, site)
            self.assertEqual(response.status, 404, path)
            self.assertNotIn(b"sesame", response.body)
