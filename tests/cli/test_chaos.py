"""``notify chaos``: what it refuses, what it writes, and that it leaves nothing behind when it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.auth import temporary_file
from tests.support.cli import KEY, Process, Server, command
from tests.support.process import wait_for
from tests.support.programs import program


class Refusals(SynchronousTestCase):
    """Each is one sentence, with status 2: status 1 is for a broken promise."""

    def refused(self, *arguments: str, **environ: str) -> str:
        result = command("chaos", *arguments, **environ)
        self.assertEqual((result.status, result.out), (2, ""), result.err)
        self.assertEqual(result.err.count("\n"), 1)
        return result.err

    def test_no_nats_server(self) -> None:
        self.assertIn("there is no /nowhere/nats: install it", self.refused("--nats-server", "/nowhere/nats"))

    def test_the_built_in_set_takes_no_address(self) -> None:
        self.assertIn(
            "the built-in set on this machine is used", self.refused("--api-url", "http://10.0.0.1:8081")
        )

    def test_a_deployment_is_named_whole(self) -> None:
        given = ["--url", "ws://10.0.0.1/ws"]
        for more, missing in (
            ([], "--api-url"),
            (["--api-url", "http://10.0.0.1"], "--tokens"),
            (["--tokens", temporary_file(self, b"a")], "--chat"),
        ):
            given += more
            self.assertIn(f"--url also needs {missing}", self.refused(*given))
        self.assertIn("No API key was given", self.refused(*given, "--chat", "1"))
        self.assertIn(
            "contains no token",
            self.refused(*given[:-1], temporary_file(self, b" \n"), "--chat", "1"),
        )

    def test_bounds(self) -> None:
        for arguments in (("--clients", "501"), ("--rate", "0"), ("--seconds", "2h"), ("--settle", "2h")):
            self.assertIn(f"{arguments[0]} must be from", self.refused(*arguments))
        self.assertIn("2,000,000", self.refused("--clients", "500", "--rate", "1000", "--seconds", "5s"))

    def test_faults(self) -> None:
        for fault, expected in (
            ("reboot", "is written"),
            ("at=5s reboot", "nothing that can be done"),
            ("at=5s kill node-1 / undo=7s rm -r /", "nothing that can be done"),
            ("at=50s kill node-1", "after the end"),
        ):
            self.assertIn(expected, self.refused("--fault", fault))
        self.assertIn("not both", self.refused("--fault", "at=5s kill node-1", "--seed", "1"))
        self.assertIn("only for the built-in set", self.refused("--url", "ws://10.0.0.1/ws", "--seed", "1"))

    def test_a_report_that_cannot_be_written_is_known_before(self) -> None:
        self.assertIn("cannot be written", self.refused("--html", "/nowhere/report.html"))


class Deployment(Server):
    def chaos(self, *arguments: str, tokens: int = 2) -> Process:
        lines = "\n".join(self.token(user) for user in range(1, tokens + 1))
        return self.spawn(
            "chaos",
            *("--url", self.environ["NOTIFY_URL"], "--api-url", self.environ["NOTIFY_API_URL"]),
            *("--tokens", temporary_file(self, lines.encode()), "--chat", "1", "--seconds", "1s"),
            *arguments,
        )

    async def test_a_report_in_each_form(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        process = self.chaos("--json", f"{folder}/r.json", "--html", f"{folder}/r.html", "--clients", "3")
        self.assertEqual(await process.ended(), 0, process.err)
        self.assertTrue(process.out.startswith("Held: "), process.out)
        report = json.loads((folder / "r.json").read_text())
        self.assertEqual((report["verdict"], report["clients"], report["topics"]), ("held", 3, 3))
        self.assertIn("<svg", (folder / "r.html").read_text())

    async def test_a_fault_that_fails_is_status_2(self) -> None:
        process = self.chaos("--fault", "at=0.2s exit 7", "--quiet")
        self.assertEqual((await process.ended(), process.err), (2, ""))
        self.assertTrue(process.out.startswith("Unproven: "), process.out)

    async def test_a_wrong_key_is_one_sentence(self) -> None:
        process = self.chaos("--api-key", KEY[:-1], "--quiet")
        self.assertEqual(await process.ended(), 2)
        self.assertRegex(process.err, r"^notify chaos: The HTTP API does not take messages: [^\n]+\n$")


class Stopped(SynchronousTestCase):
    def test_ctrl_c_leaves_no_server_and_no_file(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        arguments = ["chaos", "--nats-server", program("nats-server"), "--fault", "at=0s pause node-1"]
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "notify.cli.main", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
            # Processes that a shell runs in the background ignore SIGINT, and so do their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        while "pause node-1" not in (line := process.stderr.readline()):
            self.assertTrue(line)
        self.assertEqual(len(running(folder)), 6)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(20), 130)
        wait_for("nothing runs", lambda: not running(folder))
        self.assertEqual(list(folder.iterdir()), [])


def running(folder: Path) -> list[str]:
    """The processes that name a folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"{folder}/notify-chaos" in words:
            found.append(words)
    return found
