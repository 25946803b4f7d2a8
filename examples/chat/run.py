"""The example in one command: notify, the backend and the worker, until Ctrl-C. ``make chat``, or python run.py [PORT PORT PORT].

The ports are those of the page, and of notify for the page and for the backend: 8000, 8080 and 8081, or whichever are free. One of the
three that is killed is started again, so that you can see what becomes of the messages; where one fails, all end.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO
from urllib.request import urlopen

import store

HERE = Path(__file__).parent
PORTS = (8000, 8080, 8081)
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def free(port: int) -> int:
    """This port, or another where somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret(name: str) -> str:
    """A secret in a file that only its owner reads; made where there is none."""
    file = store.DATA / name
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(48))
    return file.read_text()


def claim() -> TextIO:
    """The folder, for us and for what we start as long as any of that lives: what is in an outbox goes to one notify alone.

    Gives a locked file, in which :func:`note` writes who that is.
    """
    store.DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (store.DATA / "running").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        running = f"`kill {lock.read()}`"
        raise SystemExit(
            f"{store.DATA} is in use, by another of these or by what one has left behind: {running} ends that"
        ) from None
    return lock


def prepare() -> None:
    """The database and the keys."""
    secret("token-secret")
    secret("webhook-secret")
    (store.DATA / "api-keys").touch(mode=0o600)
    (store.DATA / "api-keys").write_text(
        f"{secret('backend-key')} name=chat-backend scopes=read workspaces={store.WORKSPACE}\n"
        f"{secret('worker-key')} name=chat-worker scopes=publish,control workspaces={store.WORKSPACE}\n"
    )
    store.create()


class Program:
    """One of the three, whose output goes to a file."""

    def __init__(self, name: str, *command: str | Path) -> None:
        self.name, self.command, self.log = name, command, store.DATA / f"{name}.log"
        self.log.unlink(missing_ok=True)

    def __str__(self) -> str:
        return f"{self.name} {self.process.pid}"

    def start(self, environ: dict[str, str], lock: TextIO) -> None:
        """Run it, in a group of its own: Ctrl-C is for us, and we tell it. It has the lock as we have."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environ,
                cwd=store.DATA,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )

    def look(self, environ: dict[str, str], lock: TextIO) -> bool:
        """Start it again where it was killed or asked to leave; where it failed, say so and end."""
        status = self.process.poll()
        if status is None:
            return False
        if status > 0:
            said = "\n".join(self.log.read_text().splitlines()[-20:])
            raise SystemExit(f"{self.name} has failed with status {status}; {self.log} ends with\n{said}")
        time.sleep(0.5)
        self.start(environ, lock)
        print(f"{self.name} was killed: it is started again as {self.process.pid}", flush=True)
        return True

    def stop(self) -> None:
        """Ask it to leave, and do not wait for ever."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answers(url: str) -> bool:
    """Whether somebody is there."""
    try:
        urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


def note(lock: TextIO, programs: list[Program]) -> None:
    """Write down who has the folder."""
    lock.truncate(0)
    lock.write(" ".join(str(pid) for pid in (os.getpid(), *(program.process.pid for program in programs))))
    lock.flush()


def leave(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> None:
    """See the module."""
    page, public, internal = (int(port) for port in sys.argv[1:]) if sys.argv[1:] else map(free, PORTS)
    api, origin = f"http://127.0.0.1:{internal}", f"http://127.0.0.1:{page}"
    environ = {
        **os.environ,
        "CHAT_DATA": str(store.DATA.resolve()),
        "CHAT_PORT": str(page),
        "NOTIFY_URL": f"ws://127.0.0.1:{public}/ws",
        "NOTIFY_API_URL": api,
        # What notify.toml says for the usual ports.
        "NOTIFY_LISTEN__PUBLIC": f"tcp:{public}:interface=127.0.0.1",
        "NOTIFY_LISTEN__INTERNAL": f"tcp:{internal}:interface=127.0.0.1",
        "NOTIFY_LISTEN__ALLOWED_ORIGINS": f"{origin},http://localhost:{page}",
        "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_URL": f"{origin}/notify/authorize",
    }
    lock = claim()
    prepare()
    twistd = Path(sys.executable).with_name("twistd")
    programs = [
        Program("backend", sys.executable, HERE / "backend.py"),
        Program("notify", twistd, "--nodaemon", "--pidfile=", "notify", "--config", HERE / "notify.toml"),
        Program("worker", sys.executable, HERE / "worker.py"),
    ]
    for number in STOPS:
        signal.signal(number, leave)
    started: list[Program] = []
    try:
        for program in programs:
            program.start(environ, lock)
            started.append(program)
        note(lock, started)
        said = False
        while True:
            if any(program.look(environ, lock) for program in programs):
                note(lock, started)
            if not said and answers(origin) and answers(f"{api}/health/ready"):
                print(f"open {origin} and sign in as Ada", flush=True)
                print(f"open http://localhost:{page} in another window and sign in as Grace", flush=True)
                print("kill -9 one of them, and nothing is lost:", *map(str, programs), flush=True)
                print(f"database and logs are in {store.DATA}; Ctrl-C stops everything", flush=True)
                said = True
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)  # we are at it
        for program in reversed(started):
            program.stop()


if __name__ == "__main__":
    main()
