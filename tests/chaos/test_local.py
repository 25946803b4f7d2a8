"""The built-in set of servers: it passes a short trial, and a build that skips gap filling is caught."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify.chaos.local import LocalSet
from notify.chaos.target import TrialFailed
from tests.chaos.running import tried
from tests.support.programs import program

#: nodes that believe that there is nothing but what arrives
SKIPS_GAPS = """
from notify.brokers.jetstream.tail import Tail

arrived = Tail.arrived

def careless(self, state, seq, last, data, block):
    arrived(self, state, seq, state.seq, data, block)

async def blind(self, *args, **options):
    pass

Tail.arrived, Tail.check = careless, blind

from twisted.scripts.twistd import run
run()
"""


class Local(TestCase):
    timeout = 100

    def local(self, *twistd: str) -> LocalSet:
        return LocalSet(reactor, program("nats-server"), **({"twistd": twistd} if twistd else {}))

    async def test_holds_and_leaves_nothing_behind(self) -> None:
        target = self.local()
        report = await tried(
            self,
            target,
            "at=0.3s kill node-2 / undo=1s start node-2",
            "at=1.5s silence link-1",
            "at=4.5s cut clients",
            seconds=5.0,
        )
        self.assertEqual((report.verdict, report.doubts, report.wrongs), ("held", [], []))
        self.assertGreater(report.counts.acknowledged, 50)
        self.assertGreater(report.counts.delivered, report.counts.acknowledged)
        killed, silent, cut = report.faults
        self.assertGreater(killed.hit, 0)
        self.assertGreater(cut.hit, 0)
        self.assertGreaterEqual(report.reconnects, killed.hit + cut.hit)
        # Clients of the node that hears nothing from NATS stay connected, and wait until the node has noticed.
        self.assertGreater(silent.caught_up or 0, 0.5)
        processes = [server._process for server in target._servers.values()]
        self.assertEqual([process is not None and process.poll() for process in processes], [None] * 6)
        await target.stop([])
        self.assertNotIn(None, [process and process.poll() for process in processes])
        assert target._folder is not None
        self.assertFalse(target._folder.exists())

    async def test_catches_a_build_that_skips_gap_filling(self) -> None:
        report = await tried(
            self,
            self.local(sys.executable, "-c", SKIPS_GAPS),
            "at=0.5s silence link-1",
            seconds=4.5,
            settle=3.0,
        )
        self.assertEqual((report.verdict, report.counts.lost > 0), ("broken", True), report.counts)
        self.assertEqual({wrong.what for wrong in report.wrongs}, {"lost"})

    def test_says_that_there_is_no_nats_server(self) -> None:
        with self.assertRaisesRegex(TrialFailed, "needs nats-server, and there is no /nowhere"):
            LocalSet(reactor, "/nowhere")

    async def test_a_server_that_does_not_start_is_told_with_its_last_words(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        broken = folder / "nats-server"
        broken.write_text("#!/bin/sh\necho cannot, sorry\n")
        broken.chmod(0o755)
        with self.assertRaisesRegex(TrialFailed, "nats-1 ended instead of being ready: cannot, sorry"):
            await tried(self, LocalSet(reactor, str(broken)))
