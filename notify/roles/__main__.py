"""``python -m notify.roles NUMBER LOOP``: a worker, on that event loop.

Only the first process of a server starts it, and it ends with that process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from notify.errors import StartError
from notify.service import reactor as reactors
from notify.service.spawn import LINK, SOCKETS

log = Logger("notify.roles")

#: prctl(2), from linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the first process says to end, or is gone."""
    # A terminal or a service manager signals all processes of a server; here only the first process decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    # Even if this process hangs, and would not notice that the first one is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    reactors.install(sys.argv[2])
    from twisted.internet import reactor as installed

    reactor: Any = installed
    reactor.callWhenRunning(_join, reactor)
    reactor.run(installSignalHandlers=False)


def _join(reactor: Any) -> None:
    from notify.core.dispatcher import end_of_turn
    from notify.observe import logging
    from notify.roles.worker import WorkerRole
    from notify.transport.tcp import open_more_files
    from notify.workers import wire
    from notify.workers.frames import Begin, Failed, Line, Ping, Pong

    open_more_files()

    def gone(reason: str) -> None:
        os._exit(1)

    link = wire.join(reactor, socket.socket(fileno=LINK), gone, end_of_turn(reactor))
    globalLogBeginner.beginLoggingTo(
        [logging.relay(lambda *said: link.say(Line(*said)))], redirectStandardIO=False, discardBuffer=False
    )
    sockets = socket.socket(fileno=SOCKETS)

    def begin(said: Begin) -> None:
        def failed(failure: Failure) -> None:
            if not isinstance(failure.value, StartError):
                log.failure("a worker cannot start", failure)
            link.say(Failed(failure.getErrorMessage()))
            link.flush()
            reactor.stop()

        role = WorkerRole(reactor, link, sockets, said)
        maybeDeferred(role.run).addErrback(failed)

    link.hear(Begin, begin)
    link.hear(Ping, lambda _: link.say(Pong()))


if __name__ == "__main__":
    main()
