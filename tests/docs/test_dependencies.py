"""docs/dependencies.md has a reason for each locked library, and for no other; the list in packages names them all."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.trial.unittest import SynchronousTestCase

from tests.deploy.test_lock import locked
from tests.security.audit import verdict
from tests.support.programs import ROOT, need, run

PAGE = ROOT / "docs" / "dependencies.md"


def told(*headings: str) -> list[str]:
    """The libraries in the tables of these parts of the page."""
    parts = re.split("^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = "".join(part for part in parts if part.startswith(headings))
    return [name for name in re.findall(r"^\| (\w[\w-]*) \| .+ \|$", text, re.MULTILINE) if name != "library"]


class Reasons(SynchronousTestCase):
    def test_each_that_is_locked_has_one(self) -> None:
        self.assertEqual(sorted(told("Direct", "Transitive")), sorted(locked()))
        self.assertEqual(sorted(told("Build")), sorted(locked("requirements-build.lock")))

    def test_direct_is_what_setup_py_asks_for(self) -> None:
        asked = set()
        for line in distribution("notify-realtime").requires or []:
            requirement = Requirement(line)
            extras = ({"extra": extra} for extra in ("otel", "uvloop"))
            if requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in extras):
                asked.add(canonicalize_name(requirement.name))
        self.assertEqual({*told("Direct")}, asked)


class Inventory(SynchronousTestCase):
    def test_the_list_names_all_that_is_installed_and_is_the_same_each_time(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir(parents=True)
        try:
            import cyclonedx  # noqa: F401
        except ImportError:
            need(False, "cyclonedx-python-lib is missing: make env")
        site, script = (
            Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages",
            ROOT / "packaging" / "sbom.py",
        )
        texts = []
        for name in ("one", "other"):
            run(sys.executable, script, site, folder / name, environ={"SOURCE_DATE_EPOCH": "1700000000"})
            texts.append((folder / name).read_text())
        self.assertEqual(*texts)
        made = json.loads(texts[0])
        self.assertEqual((made["bomFormat"], made["specVersion"]), ("CycloneDX", "1.6"))
        self.assertEqual(made["metadata"]["component"]["name"], "notify-realtime")
        there = {one["name"]: one["purl"] for one in made["components"]}
        self.assertLessEqual({*told("Direct")}, {*there})
        self.assertRegex(there["twisted"], r"pkg:pypi/twisted@\d+\.")


class Audit(SynchronousTestCase):
    def test_what_is_found_is_told_with_what_mends_it(self) -> None:
        fault = {"id": "PYSEC-1", "fix_versions": ["1.1"]}
        listed = [
            {"name": "a", "version": "1.0", "vulns": [fault]},
            {"name": "b", "version": "2", "vulns": []},
        ]
        output = json.dumps({"dependencies": listed})
        self.assertEqual(verdict(output), (["a", "b"], ["a 1.0: PYSEC-1, mended by 1.1"]))

    def test_what_there_is_no_data_of_is_not_audited(self) -> None:
        skipped = {"name": "a", "skip_reason": "Dependency not found"}
        self.assertEqual(verdict(json.dumps({"dependencies": [skipped]})), ([], []))
        for output in ("", "{}", "[]", "<html>"):
            self.assertEqual(verdict(output), ([], []))
