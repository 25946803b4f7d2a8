"""A real server process and real clients, for tests that run in a thread (``deferToThread``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from notify.auth.tokens import issue
from notify.ids import Id
from tests.support.ports import free_port

T = TypeVar("T")

TWISTD = Path(sys.executable).parent / "twistd"
SECRET = "0123456789abcdef0123456789abcdef-not-a-real-secret"
KEY = "a-key-for-tests-0123456789"


@contextmanager
def service_manager() -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A socket in systemd's place, and the environment that makes a server use it, with a watchdog of 200 ms."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        address = str(Path(folder) / "notify")
        manager.bind(address)
        manager.settimeout(10)
        yield manager, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}


def wait_for(what: str, ask: Callable[[], T], seconds: float = 60) -> T:
    """Ask until the answer is true, and return it. Raises ``TimeoutError`` with ``what`` in its text."""
    until = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return answer


class Server:
    """``twistd notify`` with a configuration file, as a context manager; ``extra`` is added to the file."""

    def __init__(
        self, extra: str = "", environ: dict[str, str] | None = None, argv: list[str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="notify-test-"))
        self.public, self.internal = free_port(), free_port()
        self.file = self.folder / "notify.toml"
        self.log_file = self.folder / "log"
        self.argv = argv or [str(TWISTD), "--nodaemon", "--pidfile="]
        # Whichever user runs the tests: they inspect the memory and the files of the process.
        self.environ = {**os.environ, "NOTIFY_SERVER__DUMPABLE": "true", **(environ or {})}
        self.configure(extra)

    def configure(self, extra: str) -> None:
        """Write the configuration file."""
        tables: dict[str, str] = {
            "listen": f'public = "tcp:{self.public}:interface=127.0.0.1"\n'
            f'internal = "tcp:{self.internal}:interface=127.0.0.1"\n',
            "auth.jwt": f'secret = "{SECRET}"\n',
            "api": f'keys = ["{KEY}"]\n',
        }
        for part in re.split(r"(?m)^\[", extra):
            name, bracket, keys = part.partition("]\n")
            if bracket:
                tables[name] = tables.get(name, "") + keys
        self.file.write_text("".join(f"[{name}]\n{keys}\n" for name, keys in tables.items()))

    def __enter__(self) -> Server:
        self.start()
        return self

    def start(self) -> None:
        """Start the server, for the first time or again, and wait until it is ready."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.argv, "notify", "--config", str(self.file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environ,
            )
        try:
            wait_for("the server is ready", lambda: self.ready() or self.process.poll() is not None)
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log()}")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def restart(self, seconds: float = 60) -> None:
        """Let the server drain and end, then start it again."""
        self.signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        if status != 0:
            raise AssertionError(f"it ended with {status}:\n{self.log()}")
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind is not None:
            sys.stderr.write(self.log())
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """Everything that it has logged."""
        return self.log_file.read_text("utf-8", "replace")

    def logged(self, text: str) -> None:
        """Wait until this text is in the log."""
        wait_for(f"the log says {text!r}", lambda: text in self.log())

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def ready(self) -> bool:
        """Whether the server reports that it is ready."""
        try:
            return self.http("GET", "/health/ready")[0] == 200
        except OSError:
            return False

    def http(
        self, method: str, path: str, body: object = None, key: str | None = KEY, **headers: str
    ) -> tuple[int, Any]:
        """Send a request to the internal listener; return the status, and the JSON or text of the answer."""
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.internal}{path}", data, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in self.http("GET", "/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def publish(self, chat_id: int, content: str, message_id: int = 1, **headers: str) -> tuple[int, Any]:
        """Publish to a chat of workspace 1."""
        payload = {
            "message_id": message_id,
            "chat_id": chat_id,
            "workspace_id": 1,
            "sender_id": 1,
            "content": content,
            "timestamp": int(time.time()),
        }
        subject = f"workspace.1.chat.{chat_id}.messages"
        return self.http("POST", "/v1/publish", {"subject": subject, "payload": payload}, **headers)

    @contextmanager
    def client(self, user_id: int = 1, chats: tuple[int, ...] = ()) -> Iterator[Client]:
        """A client that is authenticated and subscribed to these chats."""
        with connect(f"ws://127.0.0.1:{self.public}/ws", close_timeout=1) as socket:
            client = Client(socket)
            client.send(type="auth", token=token(user_id))
            assert client.receive()["success"]
            for chat_id in chats:
                client.send(type="subscribe", chat_id=chat_id, id=chat_id)
                assert client.receive()["type"] == "subscribed"
            yield client


def token(user_id: Id = 1, workspace_id: Id = 1) -> str:
    """A token that is valid for an hour."""
    return issue(SECRET, user_id, workspace_id, 3600, time.time())


class Client:
    """A minimal WebSocket client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, **frame: Any) -> None:
        """Send a frame."""
        self.socket.send(json.dumps(frame))

    def receive(self, seconds: float = 10) -> Any:
        """Wait for the next frame."""
        return json.loads(self.socket.recv(seconds))

    def closed(self, seconds: float = 10) -> tuple[int, Any]:
        """Wait until the server closes; return the code, and the reason: as JSON if it is, else as text."""
        try:
            while True:
                self.socket.recv(seconds)
        except ConnectionClosed as error:
            close, why = error.rcvd, f"{error} ({error.__cause__!r})"
        if close is None:
            raise AssertionError(f"the server hung up without a close frame: {why}")
        advice = close.reason.startswith("{")
        return close.code, json.loads(close.reason) if advice else close.reason or None
