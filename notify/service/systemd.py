"""The systemd interface: notifications (sd_notify(3)) and passed sockets (sd_listen_fds(3)).

Notifications are readiness, status, reloads, stopping, and the watchdog. Outside systemd, where ``$NOTIFY_SOCKET`` is
not set, :class:`Systemd` does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.logger import Logger

_HANDED_OVER = ({"domain", "name"}, {"domain", "index"})


class Systemd:
    """The notification socket of this process's service manager.

    ``environ`` is the process's environment; ``monotonic`` returns CLOCK_MONOTONIC in nanoseconds.
    """

    log = Logger()

    def __init__(
        self,
        environ: Mapping[str, str],
        monotonic: Callable[[], int] = time.monotonic_ns,
        pid: int | None = None,
    ) -> None:
        self._monotonic = monotonic
        address = environ.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with @ in place of the leading NUL byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = _watchdog(environ, os.getpid() if pid is None else pid)

    @property
    def present(self) -> bool:
        """Whether a service manager is listening."""
        return bool(self._address)

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of :meth:`alive`, half of what systemd allows; None: there is no watchdog."""
        return self._interval if self._address else None

    def ready(self, status: str) -> None:
        """The server serves, for the first time or after :meth:`reloading`; or systemd must not wait longer for its
        start.
        """
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic() // 1000}")

    def stopping(self, status: str) -> None:
        """The server is shutting down."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def extend_timeout(self, seconds: float) -> None:
        """Allow this many more seconds from now for stopping, whatever TimeoutStopSec says."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def alive(self) -> None:
        """The reactor is running. If this is not called for too long, systemd ends the process."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as unix:
                unix.connect(self._address)
                unix.send("\n".join(assignments).encode())
        except OSError as error:
            self.log.warn("systemd cannot be notified: {reason}", reason=error.strerror)


def is_handed_over(description: str) -> bool:
    """Whether an endpoint is a socket passed by systemd: ``systemd:domain=INET6:name=ws``, or ``index=0``.

    Raises ``ValueError`` if it could not be used even if the socket existed, since Twisted looks for the socket
    first.
    """
    kind, *arguments = description.split(":")
    if kind != "systemd":
        return False
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.get("domain") not in ("INET", "INET6", "UNIX") or given.keys() not in _HANDED_OVER:
        raise ValueError(
            "it must have the form systemd:domain=INET6:name=ws, with the domain INET, INET6 or UNIX"
        )
    if not given.get("name", given.get("index", "").isdecimal()):
        raise ValueError(
            "it must give the socket's name from its FileDescriptorName, or a number as its index"
        )
    return True


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    usec, wanted = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (wanted and wanted != str(pid)):
        return None
    return int(usec) / 2_000_000


def _line(status: str) -> str:
    return " ".join(status.split())
