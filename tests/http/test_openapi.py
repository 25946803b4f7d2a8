import os
import re
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from notify.core import steering
from notify.http import guesses
from notify.http.openapi import INT64, document
from tests.support.http import KEY, Node, temporary_folder
from tests.support.programs import ROOT, UNMEASURED


class DocumentTest(TestCase):
    def test_describes_exactly_what_is_served(self) -> None:
        node = Node()
        described = {
            (path, method.upper(), "security" in operation)
            for path, operations in document(1, 1)["paths"].items()
            for method, operation in operations.items()
        }
        served = {
            (path.decode(), method.decode(), bool(route.scope))
            for path, route in node.site.routes.items()
            for method in route.methods
            if not path.startswith(b"/admin")  # the pages are for people
        }
        self.assertEqual(described, served)
        for path, _, secure in served:
            self.assertEqual(secure, path.startswith("/v1"))

    def test_is_served_without_a_key(self) -> None:
        response = Node(keys=()).call("GET", "/openapi.json", auth=False)
        self.assertEqual((response.status, response.json["openapi"]), (200, "3.1.0"))

    def test_every_reference_leads_somewhere(self) -> None:
        served = Node().call("GET", "/openapi.json")
        schemas = served.json["components"]["schemas"]
        names = set(re.findall(r"#/components/schemas/(\w+)", served.body.decode()))
        self.assertEqual(names - schemas.keys(), set())
        self.assertIn("ChatMessage", names)

    def test_its_pattern_of_an_id_is_that_of_signed_64_bit_integers(self) -> None:
        edge = 2**63
        for number in (
            0,
            1,
            -1,
            10**18,
            9 * 10**18,
            edge - 1,
            edge - 8,
            -edge,
            1 - edge,
            9223372036854775799,
        ):
            self.assertTrue(re.fullmatch(INT64, str(number)), number)
        for text in (
            str(edge),
            str(-edge - 1),
            str(10**19),
            "9300000000000000000",
            "-0",
            "01",
            "+1",
            "",
            "1.0",
        ):
            self.assertIsNone(re.fullmatch(INT64, text), text)


class SchemathesisTest(TestCase):
    timeout = 180

    async def test_holds_against_valid_and_invalid_requests(self) -> None:
        from twisted.internet import reactor

        node = Node(reactor=reactor, drains=False)
        node.up()
        self.patch(guesses, "AT_ONCE", 100)  # each operation is tried with wrong keys
        self.patch(steering, "LOOK", 0.0)  # a rate is measured over this many seconds, one by default
        self.patch(guesses, "AT_ONCE", 100)  # each path is tried with a wrong key
        node.wheel.start()
        self.addCleanup(node.wheel.stop)
        port = reactor.listenTCP(0, node.site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        out, err, status = await getProcessOutputAndValue(
            str(Path(sys.executable).parent / "schemathesis"),
            [
                f"--config-file={ROOT / 'tests' / 'http' / 'schemathesis.toml'}",
                *("run", f"http://127.0.0.1:{port.getHost().port}/openapi.json"),
                *("--header", f"Authorization: Bearer {KEY}"),
                *(
                    "--max-examples=30",
                    "--seed=20",
                    "--request-timeout=20",
                    "--suppress-health-check=all",
                    "--no-color",
                ),
            ],
            env={
                **os.environ,
                **UNMEASURED,
                "PYTHONPATH": str(ROOT),
                "SCHEMATHESIS_HOOKS": "tests.http.schemathesis_hooks",
            },
            path=str(temporary_folder(self)),
        )
        text = (out + err).decode()
        self.assertEqual(status, 0, text)
        self.assertIn("No issues found", text)
        generated = re.search(r"(\d+) generated, (\d+) passed", text)
        self.assertGreater(int(generated[2]), 300, text)
        self.assertGreater(
            node.metrics.registry.get_sample_value("notify_published_total", {"result": "ok"}), 10, text
        )
        described = {
            path
            for path in document(1, 1)["paths"]
            if path not in ("/openapi.json", "/v1/trace", "/v1/stream")
        }
        self.assertEqual(self.succeeded(node) & described, described, text)

    def succeeded(self, node: Node) -> set[str]:
        return {
            sample.labels["path"]
            for family in node.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "notify_http_requests_total" and sample.labels["status"].startswith("2")
        }
