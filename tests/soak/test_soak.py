"""A short soak of both client libraries; ``make soak`` is the long one."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.soak.proxy import ChaosProxy
from tests.soak.run import Ledger, report
from tests.support.programs import ROOT, node_modules, program


class Soak(TestCase):
    timeout = 200

    async def test_every_message_is_handed_over_once_and_in_order(self) -> None:
        program("node"), node_modules()
        command = [sys.executable, "-m", "tests.soak.run", "--seconds", "8", "--seed", "7"]
        command += ["--python", "4", "--javascript", "4"]
        done: Any = await deferToThread(
            subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
        )
        print(done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("every message once and in order", done.stdout)
        self.assertRegex(
            done.stdout, r"python: 4 clients, 16 streams, [1-9]\d* messages, [1-9]\d* reconnects"
        )
        self.assertRegex(
            done.stdout, r"javascript: 4 clients, 16 streams, [1-9]\d* messages, [1-9]\d* reconnects"
        )


class Verdict(TestCase):
    """What the soak reports as a fault."""

    def judge(self, *received: int) -> bool:
        ledger = Ledger()
        ledger.ready.add(("python-0", 1))
        for number in received:
            ledger.received("python-0", 1, number)
        return report(ledger, {1: 3}, [ChaosProxy(1, Random(1))], 1, 1, 1, 0)

    def test_all_in_order_is_well(self) -> None:
        self.assertTrue(self.judge(1, 2, 3))

    def test_anything_else_is_not(self) -> None:
        for received in ((1, 2), (1, 3), (1, 3, 2), (1, 2, 2, 3), (1, 2, 3, 3), ()):
            self.assertFalse(self.judge(*received), received)
