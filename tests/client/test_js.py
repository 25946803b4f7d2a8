"""The JavaScript client: its own tests under Node, and what it exports."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import Settings
from tests.support.programs import ROOT, program

PACKAGE = ROOT / "notify" / "web" / "client"


def run(*command: str, timeout: float = 100) -> Deferred[Any]:
    return deferToThread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


class JavaScript(TestCase):
    timeout = 120

    async def test_its_own_tests_pass_and_so_do_all_scenarios(self) -> None:
        tests = sorted(str(path) for path in (ROOT / "tests" / "js").glob("*.test.mjs"))
        done = await run(program("node"), "--test", "--test-reporter=tap", *tests)
        self.assertEqual(done.returncode, 0, done.stdout[-5000:])
        counts = dict(re.findall(r"^# (\w+) (\d+)$", done.stdout, re.MULTILINE))
        scenarios = json.loads((ROOT / "tests/conformance/scenarios.json").read_text())["scenarios"]
        self.assertGreater(int(counts["pass"]), len(scenarios))
        self.assertEqual((counts["fail"], counts["skipped"], counts["todo"]), ("0", "0", "0"))
        for scenario in scenarios:
            self.assertRegex(done.stdout, rf"(?m)^\s*ok \d+ - {re.escape(scenario['name'])}$")

    async def test_its_settings_are_those_of_the_python_library(self) -> None:
        show = (
            f"import('{PACKAGE / 'notify-client.js'}').then((m) => console.log(JSON.stringify(m.DEFAULTS)))"
        )
        done = await run(program("node"), "-e", show)
        self.assertEqual(json.loads(done.stdout), json.loads(msgspec.json.encode(Settings())))

    async def test_what_is_exported_is_declared(self) -> None:
        show = f"import('{PACKAGE / 'notify-client.js'}').then((m) => console.log(Object.keys(m).join()))"
        exported = (await run(program("node"), "-e", show)).stdout.strip().split(",")
        declared = re.findall(
            r"(?m)^export (?:class|function|const) (\w+)", (PACKAGE / "notify-client.d.ts").read_text()
        )
        self.assertIn("NotifyClient", exported)
        self.assertEqual(sorted(exported), sorted(declared))
