"""A link over a socket: what is written while it is full, and what that tells of the other end."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.workers.frames import Document, Pong, Reply, Splitter, pack
from notify.workers.wire import Wire


class Reactor(Clock):  # type: ignore[misc]
    """A clock that knows who wants to write."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[object] = set()

    def addReader(self, reader: object) -> None:
        """Nobody reads here."""

    removeReader = addReader

    def addWriter(self, writer: object) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writers.discard(writer)


class Wires(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = Reactor()
        ours, self.theirs = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.wire = Wire(
            self.reactor, ours, lambda reason: None, lambda call: self.reactor.callLater(0, call)
        )
        self.addCleanup(self.wire._end, "")
        self.link = self.wire.link

    def test_only_what_a_full_socket_takes_shows_that_the_other_end_reads(self) -> None:
        self.link.say(Pong())
        self.reactor.advance(0)
        said = [Pong(), Reply(1, Document(bytes(range(256)) * 2**12)), Pong()]
        for one in said[1:]:
            self.link.say(one)
        self.reactor.advance(0)
        self.assertTrue(self.link.held)
        self.assertEqual((self.link.taken, self.reactor.writers), (0, {self.wire}))
        self.wire.doWrite()  # there is no room
        self.assertEqual(self.link.taken, 0)
        splitter, found = Splitter(), []
        while self.link.held:
            found += splitter.feed(self.theirs.recv(2**20))
            taken = self.link.taken
            self.wire.doWrite()
            self.assertGreater(self.link.taken, taken)
        found += splitter.feed(self.theirs.recv(2**20))
        self.assertEqual(found, said)
        self.assertLess(self.link.taken, sum(len(pack(one)) for one in said))
        self.assertEqual(self.reactor.writers, set())
