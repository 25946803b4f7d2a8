"""docs/security.md names a test for each defence that it describes, and each of these tests exists."""

from __future__ import annotations

import ast
import re

from twisted.trial.unittest import SynchronousTestCase

from tests.security.mutations import TABLE
from tests.support.programs import ROOT

PAGE = ROOT / "docs" / "security.md"
SECTIONS = ["Tokens", "The JWK Set", "The webhook", "Origins and TLS", "Tenancy", "Positions", "Frames", "HTTP",
            "Resources", "The broker"]  # fmt: skip


def rows() -> list[tuple[str, str, str]]:
    """Attack, answer and test of each row."""
    found = re.findall(r"^\| (.+) \| (.+) \| `(.+)` \|$", PAGE.read_text(), re.MULTILINE)
    return [(attack, answer, test) for attack, answer, test in found]


def exists(test: str) -> bool:
    """Whether a test exists: a module with tests, a class with tests, or a method."""
    module, *names = test.split("::")
    path = ROOT / "tests" / module
    if not path.is_file():
        return False
    nodes = ast.parse(path.read_text()).body
    for name in names:
        named = [
            node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        nodes = next((node.body for node in named if node.name == name), [])
        if not nodes:
            return False
    return len(names) == 2 or any("test_" in ast.dump(node) for node in nodes)


class Page(SynchronousTestCase):
    def test_each_row_names_a_test_that_there_is(self) -> None:
        found = rows()
        lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
        self.assertEqual(
            len(found), len(lines) - 2 * len(SECTIONS), "a row without an attack, an answer and a test"
        )
        self.assertEqual([test for _, _, test in found if not exists(test)], [])
        self.assertFalse(exists("auth/test_jwt.py::Attacks::test_that_there_is_not"))
        self.assertFalse(exists("auth/test_nothing.py"))

    def test_each_kind_of_attack_is_told_of(self) -> None:
        self.assertEqual(re.findall("^## (.*)$", PAGE.read_text(), re.MULTILINE), SECTIONS)

    def test_what_is_taken_away_has_its_test_on_the_page(self) -> None:
        named = {test for _, _, test in rows()}
        self.assertEqual([one.test for one in TABLE if one.test not in named], [])

    def test_the_address_for_reports_is_the_maintainers(self) -> None:
        [address] = re.findall(
            r"^Maintainer: .*<(.*)>$", (ROOT / "debian" / "control").read_text(), re.MULTILINE
        )
        self.assertIn(address, (ROOT / "SECURITY.md").read_text())
