"""Servers that a trial starts: the ports that they are given, and the error for a server that ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from notify.chaos.processes import Server, free_ports
from notify.chaos.target import TrialFailed

#: a process that has few ports to choose from, and prints the one that it was given
ELSEWHERE = """
import random, sys
from notify.chaos import processes
offered = iter([int(port) for port in sys.argv[1:]])
random.randrange = lambda *bounds: next(offered)
print(*processes.free_ports(1))
"""


class Ports(SynchronousTestCase):
    def test_none_is_one_that_an_outgoing_connection_may_be_given(self) -> None:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        self.assertLess(max(free_ports(50)), first)

    def test_two_processes_are_not_given_the_same(self) -> None:
        given = free_ports(2)
        command = [sys.executable, "-c", ELSEWHERE, *map(str, [*given, *range(20_000, 20_100)])]
        elsewhere = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        self.assertNotIn(elsewhere, given)


class LastWords(SynchronousTestCase):
    def said(self, text: str) -> str:
        folder = Path(self.mktemp())
        folder.mkdir()
        server = Server("it", ["/bin/echo", text], folder, folder / "log", {}, lambda: False)
        self.addCleanup(server.end)
        server.start()
        return str(self.assertRaises(TrialFailed, server.wait_ready))

    def test_the_reason_is_told_and_not_the_farewell(self) -> None:
        said = self.said(
            "0:00 info  twisted: starting up.\n0:01 critical service: cannot start: the port is taken\n0:02 info  twisted: Server Shut Down."
        )
        self.assertEqual(
            said, "it ended instead of being ready: 0:01 critical service: cannot start: the port is taken"
        )

    def test_the_last_line_where_none_is_severe(self) -> None:
        self.assertEqual(self.said("one\ntwo"), "it ended instead of being ready: two")
