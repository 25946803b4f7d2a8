"""Every file that is shipped in etc/ and deploy/ is loaded by the program that it is for."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from notify.config import load
from notify.observe.metrics import Metrics
from notify.workers.metrics import Tally, dump
from tests.support.certificates import trust_in_threads
from tests.support.ports import free_port
from tests.support.process import Client, Server, token, wait_for
from tests.support.programs import program, run

TOP = Path(__file__).parent.parent.parent
ETC, DEPLOY, DOCS = TOP / "etc", TOP / "deploy", TOP / "docs"

#: which test loads what; a file that no pattern matches has no test
LOADED = {
    "etc/notify.toml": "test_etc_notify_toml",
    "etc/nats/*.conf": "test_etc_nats",
    "etc/haproxy/*.cfg": "test_etc_haproxy",
    "etc/nginx/notify.conf": "NginxTests",
    "etc/prometheus/*.yaml": "PrometheusTests",
    "etc/grafana/notify.json": "GrafanaTests",
    "deploy/docker/Dockerfile": "package/image.py",
    "deploy/docker/compose.yaml": "ComposeTests",
    "deploy/docker/nats.conf": "NATSTests",
    "deploy/helm/**/*": "test_helm.py",
}


class TempCase(TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="notify-etc-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def certificate(self) -> tuple[Path, Path]:
        key, pem = self.folder / "tls.key", self.folder / "tls.pem"
        run(
            program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "1", "-subj", "/CN=notify.example", "-keyout", key, "-out", pem,
        )  # fmt: skip
        return key, pem


class EveryFileTests(TestCase):
    def test_every_shipped_file_has_a_test_that_loads_it(self) -> None:
        files = [path for folder in (ETC, DEPLOY) for path in folder.rglob("*") if path.is_file()]
        matched = {path for pattern in LOADED for path in TOP.glob(pattern)}
        self.assertEqual([str(path.relative_to(TOP)) for path in files if path not in matched], [])


class NginxTests(TempCase):
    def configure(self, notify: int, plain: int, tls: int) -> Path:
        key, pem = self.certificate()
        text = (ETC / "nginx/notify.conf").read_text()
        for old, new in (
            ("/etc/nginx/notify.pem", str(pem)),
            ("/etc/nginx/notify.key", str(key)),
            ("/var/log/nginx/notify.log", str(self.folder / "access.log")),
            ("/var/log/nginx/notify-error.log", str(self.folder / "notify-error.log")),
            ("127.0.0.1:8080", f"127.0.0.1:{notify}"),
            ("listen 80;", f"listen 127.0.0.1:{plain};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{tls} ssl;"),
            ("    listen [::]:80;\n", ""),
            ("    listen [::]:443 ssl;\n", ""),
        ):
            self.assertIn(old, text)
            text = text.replace(old, new)
        whole = self.folder / "nginx.conf"
        folders = "".join(
            f"{name}_temp_path {self.folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole.write_text(
            f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log;\n"
            f"events {{ worker_connections 100; }}\nhttp {{\n{folders}{text}\n}}\n"
        )
        return whole

    def test_nginx_takes_it(self) -> None:
        whole = self.configure(8080, free_port(), free_port())
        said = run(program("nginx"), "-t", "-c", whole, "-e", self.folder / "error.log")
        self.assertNotIn("warn", said)

    def test_a_client_gets_through_it_and_its_log_keeps_the_query_to_itself(self) -> Deferred[None]:
        return deferToThread(self.through)

    @contextmanager
    def running(self, *changes: tuple[str, str]) -> Iterator[tuple[Server, Callable[[], ClientConnection]]]:
        """nginx in front of a server, and a function that connects through it."""
        nginx = program("nginx")
        plain, tls = free_port(), free_port()
        trusting = '[listen]\ntrusted_proxies = ["127.0.0.1"]\nallowed_origins = ["*"]\n'
        with Server(trusting) as server:
            whole = self.configure(server.public, plain, tls)
            text = whole.read_text()
            for old, new in changes:
                self.assertIn(old, text)
                text = text.replace(old, new)
            whole.write_text(text)
            process = subprocess.Popen([nginx, "-c", str(whole), "-e", str(self.folder / "error.log")])
            try:
                context = trust_in_threads(self.folder / "tls.pem")
                context.check_hostname = False

                def reach() -> bool:
                    try:
                        with socket.create_connection(("127.0.0.1", tls), 1):
                            return True
                    except OSError:
                        return False

                wait_for("nginx listens", reach)
                url = f"wss://127.0.0.1:{tls}/ws?client_id=7&token=in-the-query"
                yield server, lambda: connect(url, ssl=context, close_timeout=1)
            finally:
                process.terminate()
                process.wait(10)

    def through(self) -> None:
        with self.running() as (server, dial):
            with dial() as connection:
                client = Client(connection)
                client.send(type="auth", token=token())
                self.assertTrue(client.receive()["success"])
                client.send(type="subscribe", chat_id=1, id=1)
                client.receive()
                self.assertEqual(server.publish(1, "through nginx")[0], 200)
                self.assertEqual(client.receive()["content"], "through nginx")
            wait_for("the access log", lambda: "/ws" in (self.folder / "access.log").read_text())
            self.assertNotIn("in-the-query", (self.folder / "access.log").read_text())

    def test_a_client_gets_in_over_the_connections_that_it_kept_of_others(self) -> Deferred[None]:
        return deferToThread(self.kept)

    def kept(self) -> None:
        # One worker: otherwise the handshake might go to a worker that has kept nothing.
        with self.running(("daemon off;", "daemon off; worker_processes 1;")) as (_, dial):
            with dial() as connection:
                host, port = connection.socket.getpeername()[:2]
            context = ssl.create_default_context(cafile=str(self.folder / "tls.pem"))
            context.check_hostname = False
            for _ in range(3):
                asked = http.client.HTTPSConnection(host, port, timeout=10, context=context)
                asked.request("GET", "/health", headers={"Connection": "close"})
                self.assertEqual(asked.getresponse().status, 200)
                asked.close()
                with dial() as connection:
                    client = Client(connection)
                    client.send(type="auth", token=token())
                    self.assertTrue(client.receive()["success"])

    def test_an_address_has_only_so_many_connections_and_handshakes(self) -> Deferred[None]:
        return deferToThread(self.limited)

    def limited(self) -> None:
        for change, let_in in (
            (("limit_conn notify_connections 1000;", "limit_conn notify_connections 2;"), 2),
            (("burst=1000 nodelay;", "burst=3 nodelay;"), 4),
        ):
            with self.running(change, ("rate=50r/s", "rate=1r/m")) as (_, dial), ExitStack() as open_:
                for _ in range(let_in):
                    open_.enter_context(dial())
                with self.assertRaises(InvalidStatus) as refused:
                    dial()
                self.assertEqual(refused.exception.response.status_code, 429)


def exported() -> set[str]:
    """The names of every series that the server can export."""
    metrics = Metrics()
    for attribute in vars(metrics).values():
        names = getattr(attribute, "_labelnames", ())
        if names and hasattr(attribute, "labels"):
            attribute.labels(*["x"] * len(names))
    counted = dump(metrics.registry)
    tally = Tally()
    text = tally.render(counted, [tally.told(1, counted)], [1]).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:notify|process)_[a-z_]+\b", expression))


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ETC / "prometheus/notify.rules.yaml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


class PrometheusTests(TempCase):
    def test_promtool_takes_rules_and_configuration(self) -> None:
        promtool = program("promtool")
        run(promtool, "check", "rules", ETC / "prometheus/notify.rules.yaml")
        run(promtool, "check", "config", ETC / "prometheus/prometheus.yaml")

    def test_every_alert_fires_for_what_it_is_for(self) -> None:
        run(program("promtool"), "test", "rules", ETC / "prometheus/notify.rules.test.yaml")
        tested = (ETC / "prometheus/notify.rules.test.yaml").read_text()
        for rule in rules():
            self.assertIn(rule["alert"], tested)

    def test_alerts_ask_for_metrics_that_the_server_has(self) -> None:
        known = exported()
        for rule in rules():
            self.assertEqual(metrics_in(rule["expr"]) - known, set(), rule["alert"])

    def test_what_a_real_server_exports_is_what_promtool_calls_good(self) -> Deferred[None]:
        return deferToThread(self.check_metrics)

    def check_metrics(self) -> None:
        promtool = program("promtool")
        with Server() as server, server.client(chats=(1,)) as client:
            server.publish(1, "x")
            client.receive()
            status, text = server.http("GET", "/metrics")
            self.assertEqual(status, 200)
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
        ours = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("notify_")]
        self.assertEqual([line for line in ours if "_created" not in line], [])

    def test_a_real_prometheus_scrapes_a_real_server_and_no_alert_fires(self) -> Deferred[None]:
        return deferToThread(self.scrape)

    def scrape(self) -> None:
        prometheus = program("prometheus")
        import urllib.parse
        import urllib.request

        with Server() as server, server.client(chats=(1,)) as client:
            shutil.copy(ETC / "prometheus/notify.rules.yaml", self.folder)
            text = (ETC / "prometheus/prometheus.yaml").read_text()
            text = text.replace("15s", "1s").replace("127.0.0.1:8081", f"127.0.0.1:{server.internal}")
            (self.folder / "prometheus.yaml").write_text(text)
            port = free_port()
            process = subprocess.Popen(
                [
                    prometheus,
                    f"--config.file={self.folder}/prometheus.yaml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=error",
                ]
            )

            def ask(query: str) -> list[Any]:
                url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        found: list[Any] = json.load(answer)["data"]["result"]
                        return found
                except OSError:
                    return []

            try:
                server.publish(1, "x")
                client.receive()
                wait_for("the scrape", lambda: ask("notify_delivered_total >= 1"), 30)
                self.assertEqual(ask('notify_connections{job="notify"}')[0]["value"][1], "1")
                self.assertEqual(ask('ALERTS{alertstate="firing"}'), [])
            finally:
                process.terminate()
                process.wait(20)


class RunbookTests(TestCase):
    def test_every_alert_has_its_entry_and_every_entry_its_alert(self) -> None:
        text = (DOCS / "operations/runbook.md").read_text()
        headings = re.findall(r"(?m)^## (Notify\w+)$", text)
        self.assertEqual(sorted(headings), sorted(rule["alert"] for rule in rules()))

    def test_every_alert_links_to_its_entry_in_the_page_that_the_package_installs(self) -> None:
        self.assertIn("docs", (TOP / "debian/notify-server.docs").read_text().split())
        for rule in rules():
            base, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            page = TOP / base.removeprefix("file:///usr/share/doc/notify-server/")
            headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
            self.assertIn(anchor, [heading.lower().replace(" ", "-") for heading in headings])
            self.assertEqual(anchor, rule["alert"].lower())

    def test_what_the_runbook_names_exists(self) -> None:
        text = "".join(page.read_text() for page in (DOCS / "operations").glob("*.md"))
        known = exported()
        named = {name for name in re.findall(r"`(notify_[a-z_]+)", text) if not name.endswith("_")}
        families = known | {re.sub("_(total|bucket|count|sum)$", "", name) for name in known}
        self.assertEqual(named - families, set())


class GrafanaTests(TempCase):
    def test_every_panel_asks_for_metrics_that_the_server_has_in_promql_that_parses(self) -> None:
        promtool = program("promtool")
        dashboard = json.loads((ETC / "grafana/notify.json").read_text())
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        expressions = [target["expr"] for panel in panels for target in panel["targets"]]
        self.assertGreater(len(expressions), 20)
        known = exported()
        for expression in expressions:
            self.assertEqual(metrics_in(expression) - known, set(), expression)
        plain = [
            e.replace("$__rate_interval", "1m").replace("$job", ".+").replace("$instance", ".+")
            for e in expressions
        ]
        made = {
            "groups": [{"name": "x", "rules": [{"record": "x:y", "expr": e} for e in sorted(set(plain))]}]
        }
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(made))
        run(promtool, "check", "rules", self.folder / "rules.yaml")

    def test_it_has_the_form_of_a_dashboard(self) -> None:
        dashboard = json.loads((ETC / "grafana/notify.json").read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        cells = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            mine = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertEqual(mine & cells, set(), panel["title"])
            cells |= mine
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$(?!__)(\w+)", json.dumps(dashboard)))
        self.assertEqual(used - variables, set())


def read_settings(text: str, environ: dict[str, str]) -> None:
    """Let the server's own reader read a configuration file and an environment."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        load(file.name, environ)


class ComposeTests(TestCase):
    def setUp(self) -> None:
        self.compose = program("podman-compose")
        program("podman")

    def test_podman_compose_takes_it(self) -> None:
        secrets = {"NOTIFY_JWT_SECRET": "x" * 32, "NOTIFY_API_KEY": "y" * 32}
        said = run(self.compose, "-f", DEPLOY / "docker/compose.yaml", "config", environ=secrets)
        services = yaml.safe_load(said[said.index("name:") if "name:" in said else 0 :])["services"]
        self.assertEqual(set(services), {"notify-1", "notify-2", "nats"})
        for name in ("notify-1", "notify-2"):
            self.assertTrue(services[name]["read_only"])
            environ = services[name]["environment"]
            self.assertEqual(environ["NOTIFY_AUTH__JWT__SECRET"], "x" * 32)
            read_settings("", {key: str(value) for key, value in environ.items()})

    def test_without_secrets_it_does_not_start(self) -> None:
        with self.assertRaises(AssertionError):
            run(
                self.compose, "-f", DEPLOY / "docker/compose.yaml", "config",
                environ={"NOTIFY_JWT_SECRET": "", "NOTIFY_API_KEY": ""},
            )  # fmt: skip


class NATSTests(TempCase):
    """The rest of NATS's files: test_nats.py runs etc/nats, and test_helm.py tests those of the chart."""

    def test_nats_server_takes_the_configuration_of_compose(self) -> None:
        path = DEPLOY / "docker/nats.conf"
        run(program("nats-server"), "-t", "-c", path, cwd=self.folder)
        nats = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"]["nats"]
        self.assertIn(f"./{path.name}:{nats['command'][1]}:ro", nats["volumes"])

    def test_every_shipped_server_has_a_message_on_disk_before_it_acknowledges_it(self) -> None:
        files = [path for folder in (ETC, DEPLOY) for path in folder.rglob("nats.conf")]
        self.assertEqual(len(files), 2)
        for path in files:
            self.assertRegex(path.read_text(), r"(?m)^  sync_interval: always$", path)
