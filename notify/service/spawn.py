"""Starts a worker: a fresh process that inherits only its two sockets, and whose output is read."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from notify.service.reactor import running_on
from notify.transport import handover
from notify.workers import wire
from notify.workers.link import Link

#: the module that a worker runs, and its descriptors: the link, and the socket over which sockets are handed to it
MODULE, LINK, SOCKETS = "notify.roles", 3, 4

#: variables that the service manager sets for the first process only
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


#: the most bytes of an unterminated line
_LONGEST = 8192


class Child(ProcessProtocol):
    """A worker's process. ``ended`` is called with how it ended, ``said`` with each line that it prints.

    A worker logs over its link. What it prints comes from the interpreter or a C library, and concerns its end.
    """

    def __init__(self, ended: Callable[[str], object], said: Callable[[str], object]) -> None:
        self._ended = ended
        self._said = said
        self._rest = b""

    def signal(self, number: int) -> None:
        """Send it a signal. Does nothing if it has ended."""
        transport: Any = self.transport
        try:
            transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has printed something."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._said(line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """It has ended."""
        if self._rest:
            self._said(self._rest.decode("utf-8", "replace"))
        why: Any = reason.value
        self._ended(f"signal {why.signal}" if why.signal else f"status {why.exitCode}")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment: this process's, with the same module search path."""
    path = os.pathsep.join(part for part in map(os.path.abspath, sys.path) if os.path.exists(part))
    return {**{name: value for name, value in environ.items() if name not in _OURS}, "PYTHONPATH": path}


def spawn(
    reactor: Any,
    number: int,
    gone: Callable[[str], object],
    ended: Callable[[str], object],
    said: Callable[[str], object],
    soon: Callable[[Callable[[], None]], object],
) -> tuple[Child, Link, socket.socket]:
    """Start a worker on the same kind of event loop as this process. Raises ``OSError``.

    Returns its process, its link, and the socket over which sockets are handed to it. ``gone`` is called when its
    link has ended, ``ended`` when its process has, and ``said`` with each line that it prints.
    """
    ours, theirs = socket.socketpair()
    desk, receiver = handover.pair()
    child = Child(ended, said)
    try:
        reactor.spawnProcess(
            child,
            sys.executable,
            [sys.executable, "-m", MODULE, str(number), running_on(reactor)],
            env=environment(os.environ),
            childFDs={0: 0, 1: "r", 2: "r", LINK: theirs.fileno(), SOCKETS: receiver.fileno()},
        )
    except OSError:
        ours.close()
        desk.close()
        raise
    finally:
        theirs.close()
        receiver.close()
    return child, wire.join(reactor, ours, gone, soon), desk
