"""Server processes of this machine: started, asked whether they are ready, paused, ended; each by its own id."""

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
#: seconds that a server may take to be ready, and to leave when it is asked to
PATIENCE = 30.0
#: lines at the end of a log among which one says why a server has ended, and what tells it from the others
_END, _SEVERE = 20, re.compile(r" critical |\[FTL\]|^notify: ")


#: below what the system gives to outgoing connections, of which a trial has hundreds; where it does not say, what Linux gives
_OUTGOING = 32_768
with contextlib.suppress(OSError):
    _OUTGOING = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_kept: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has. On Linux, no other process gets one from here while this one runs.

    For processes that must be told a port, and that come back on it when they are started again.
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
    """Take a name that stands for the port, and that the system frees with the process. Raises ``OSError`` where it is taken."""
    if sys.platform == "linux":
        kept = socket.socket(socket.AF_UNIX)
        try:
            kept.bind(f"\0notify-port-{port}")
        except OSError:
            kept.close()
            raise
        _kept.append(kept)


class Server:
    """One server. Its methods block; ``environ`` is all that it gets of an environment."""

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
        #: held while it starts: what has ended it must not be overtaken
        self._starting = Lock()

    def start(self) -> None:
        """Start it unless it runs; it gets ready by itself."""
        with self._starting:
            self._wanted = True
            if self._ended or (self._process is not None and self._process.poll() is None):
                return
            with self._log.open("ab") as log:
                # A session of its own: Ctrl-C is for us, and what runs here is ended by its id.
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
        """Wait until it is ready, or ended by us. Raises :class:`TrialFailed` where it is neither in time."""
        until = time.monotonic() + PATIENCE
        while self._wanted and not self._ready():
            process = self._process
            if self._wanted and (process is None or process.poll() is not None):
                raise TrialFailed(f"{self.name} ended instead of being ready: {self.last_words()}")
            if time.monotonic() > until:
                raise TrialFailed(f"{self.name} was not ready within {PATIENCE:g} s: {self.last_words()}")
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Send it a signal, where it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to say goodbye, paused or not."""
        self._wanted = False
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def leave(self) -> None:
        """Ask it to leave, and wait until it has. Raises :class:`TrialFailed` where it does not."""
        self._wanted = False
        self.send(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise TrialFailed(f"{self.name} had not left after {PATIENCE:g} s, and was killed") from None

    def end(self) -> None:
        """Kill it, and never start it again."""
        with self._starting:
            self._ended = True
        self.kill()

    def last_words(self) -> str:
        """Why it ended as far as it has said, on one line: its last severe line, or else its last."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines() if self._log.exists() else []
        severe = [line for line in lines[-_END:] if _SEVERE.search(line)]
        return (severe or lines or ["it said nothing"])[-1][-300:]


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port of this machine."""
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
