"""Starts a worker: a fresh process that inherits nothing but its two sockets, and whose last words are read."""

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

#: what a worker runs, and the descriptors of its link and of the sockets that it is handed
MODULE, LINK, SOCKETS = "notify.roles", 3, 4

#: what the service manager says to the first process alone
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


#: bytes of a line that has no end
_LONGEST = 8192


class Child(ProcessProtocol):
    """A worker's process. ``ended`` is called with how it ended, ``said`` with each line that it prints.

    It logs over its link: what it prints is what the interpreter, or a library in C, has to say of its end.
    """

    def __init__(self, ended: Callable[[str], object], said: Callable[[str], object]) -> None:
        self._ended = ended
        self._said = said
        self._rest = b""

    def signal(self, number: int) -> None:
        """Send it a signal. Harmless when it has ended."""
        transport: Any = self.transport
        try:
            transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It prints something."""
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
    """A worker's environment: this process's, with the same modules."""
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
    """Start one, on an event loop like this process's: its process, its link, and what sockets are handed to it through. Raises ``OSError``.

    ``gone`` is called when its link is at its end, ``ended`` when its process is, ``said`` with each line that it prints.
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
