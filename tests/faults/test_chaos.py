"""``notify chaos`` as an operator runs it: its built-in set, the faults of a seed, and a report in each format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.programs import program

SECONDS, SEED = 20, 3


class Chaos(TestCase):
    timeout = 120
    skip = None if os.environ.get("FAULTS") else "fault scenarios run with FAULTS=1 (make faults)"

    async def test_the_built_in_set_under_the_faults_of_a_seed(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        report, page, logs = folder / "report.json", folder / "report.html", folder / "logs"
        command = [sys.executable, "-m", "notify.cli.main", "chaos", "--nats-server", program("nats-server")]
        command += ["--seed", str(SEED), "--seconds", f"{SECONDS}s", "--settle", "15s", "--logs", str(logs)]
        command += ["--json", str(report), "--html", str(page)]
        done: Any = await deferToThread(
            subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
        )
        sys.__stdout__.write(f"\n{done.stdout}")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(done.stdout.startswith("Held: "), done.stdout)
        found = json.loads(report.read_text())
        self.assertEqual((found["verdict"], found["seed"], found["wrongs"]), ("held", SEED, []))
        self.assertGreater(found["counts"]["acknowledged"], 10 * SECONDS)
        self.assertGreater(len(found["faults"]), 3)
        self.assertIn("Held: ", page.read_text())
        self.assertEqual(len(list(logs.iterdir())), 6)
