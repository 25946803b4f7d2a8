"""A real PostgreSQL server for tests, with its own folder: it listens only on a socket in that folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.support.process import wait_for
from tests.support.programs import program

#: The owner of the database. If root runs the tests, this user runs the server, which refuses to run as root.
USER = "postgres"


class PostgresServer:
    """A server with one database; ``url`` is its address for libpq."""

    def __init__(self) -> None:
        self._postgres, initdb = program("postgres"), program("initdb")
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as: dict[str, str] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER)
            self._as = {"user": USER, "group": USER}
        self.url = f"host={self.folder} user={USER} dbname=postgres"
        self._log = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            initdb,
            "-D",
            self._data,
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "-U",
            USER,
            "--no-sync",
        )

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            extra_groups=self._groups,
            **self._as,
        )
        if done.returncode:
            raise AssertionError(done.stdout.decode())

    @property
    def _groups(self) -> list[str] | None:
        return [] if self._as else None

    def start(self) -> PostgresServer:
        """Start the server, and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._postgres, "-D", self._data, "-k", str(self.folder), "-c", "listen_addresses="],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                extra_groups=self._groups,
                **self._as,
            )
        lines = Path(self._data) / "postmaster.pid"
        wait_for(
            f"PostgreSQL is ready: {self._log}",
            lambda: lines.exists() and lines.read_text().rstrip().endswith("ready"),
        )
        return self

    def kill(self) -> None:
        """End the server and all its processes, as a crash would."""
        self._end(signal.SIGQUIT)

    def remove(self) -> None:
        """End the server, and delete its files."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(20)
