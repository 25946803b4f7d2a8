"""Server processes on this machine: started, checked for readiness, paused and ended; each by its process id."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from notify.chaos.target import TrialFailed

HOST = "127.0.0.1"
#: timeout in seconds for a server to become ready, and to leave when asked to
PATIENCE = 30.0
#: how many lines at the end of a log may say why a server has ended, and what marks the severe ones among them
_END, _SEVERE = 20, re.compile(r" critical |\[FTL\]|^notify: ")


#: ports below the system's range for outgoing connections, of which a trial has hundreds; the default is that of Linux
_OUTGOING = 32_768
with contextlib.suppress(OSError):
    _OUTGOING = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_kept: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Free ports on 127.0.0.1. On Linux, no other process gets one of them from this function while this process runs.

    For servers that must be told their port, and that use it again when they are restarted.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(min(10_000, _OUTGOING // 2), _OUTGOING)  # noqa: S311 - no secret
        try:
            _keep(port)
            with socket.socket() as probe:
                probe.bind((HOST, port))
        except OSError:
            continue
        ports.append(port)
    return ports


def _keep(port: int) -> None:
    """Reserve a name that stands for the port and that the system releases with the process. Raises ``OSError`` if it is taken."""
    if sys.platform == "linux":
        kept = socket.socket(socket.AF_UNIX)
        try:
            kept.bind(f"\0notify-port-{port}")
        except OSError:
            kept.close()
            raise
        _kept.append(kept)


class Server:
    """One server. Its methods block. ``environ`` is its whole environment."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        log: Path,
        environ: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self.name = name
        self._command, self._folder, self._log, self._environ, self._ready = (
            command,
            folder,
            log,
            environ,
            ready,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = self._ended = False
        #: held while the server starts, so that ending it cannot overtake the start
        self._starting = Lock()

    def start(self) -> None:
        """Start the server unless it runs. Does not wait until it is ready."""
        with self._starting:
            self._wanted = True
            if self._ended or (self._process is not None and self._process.poll() is None):
                return
            with self._log.open("ab") as log:
                # A session of its own: Ctrl-C reaches only this program, which ends the servers by their process ids.
                self._process = subprocess.Popen(  # noqa: S603 - made of our own words
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env=dict(self._environ),
                    start_new_session=True,
                )

    def wait_ready(self) -> None:
        """Wait until the server is ready, or was ended by us. Raises :class:`TrialFailed` if neither happens in time."""
        until = time.monotonic() + PATIENCE
        while self._wanted and not self._ready():
            process = self._process
            if self._wanted and (process is None or process.poll() is not None):
                raise TrialFailed(f"{self.name} ended instead of being ready: {self.last_words()}")
            if time.monotonic() > until:
                raise TrialFailed(f"{self.name} was not ready within {PATIENCE:g} s: {self.last_words()}")
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Send the server a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the server without a chance to shut down, paused or not."""
        self._wanted = False
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def leave(self) -> None:
        """Ask the server to leave, and wait until it has. After :data:`PATIENCE` seconds, kill it and raise :class:`TrialFailed`."""
        self._wanted = False
        self.send(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise TrialFailed(f"{self.name} had not left after {PATIENCE:g} s, and was killed") from None

    def end(self) -> None:
        """Kill the server, and prevent any further start."""
        with self._starting:
            self._ended = True
        self.kill()

    def last_words(self) -> str:
        """The reason that its log gives for its end, on one line: the last severe line, or else the last line."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines() if self._log.exists() else []
        severe = [line for line in lines[-_END:] if _SEVERE.search(line)]
        return (severe or lines or ["it said nothing"])[-1][-300:]


def listens(port: int) -> bool:
    """Whether something accepts connections on a port of this machine."""
    try:
        socket.create_connection((HOST, port), 0.5).close()
    except OSError:
        return False
    return True


def answers(port: int, path: str) -> bool:
    """Whether a GET on a port of this machine is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
