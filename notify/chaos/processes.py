"""Server processes of this machine: started, asked whether they are ready, paused, ended; each by its own id."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from notify.chaos.target import TrialFailed

HOST = "127.0.0.1"
#: seconds that a server may take to be ready, and to leave when it is asked to
PATIENCE = 30.0


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]


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
        """The end of what it has said, on one line."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines() if self._log.exists() else []
        return lines[-1][-300:] if lines else "it said nothing"


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
