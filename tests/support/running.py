"""Servers for tests, in this process or as a separate twistd; and a raw client with a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from notify.auth.tokens import issue
from notify.config import Config, load
from notify.core.hub import Hub
from notify.service.service import NotifyService
from notify.tap import build

SECRET = "0123456789abcdef0123456789abcdef"
API_KEY = "test-key-0123456789"
BIN = Path(sys.executable).parent


def token(user_id: int = 1, workspace_id: int = 1, seconds: float = 600, **more: Any) -> str:
    """A token for :class:`LocalServer`, and for servers configured with ``SECRET``."""
    return issue(SECRET, user_id, workspace_id, seconds, time.time(), **more)


def in_asyncio(coroutine: Any) -> Deferred[Any]:
    """Run a coroutine that uses asyncio libraries in the reactor's loop."""
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))


class LocalServer:
    """The whole server in this process, on ports that the system chooses."""

    service: NotifyService

    def __init__(self, **environ: str) -> None:
        settings = {
            "NOTIFY_LISTEN__PUBLIC": "tcp:0:interface=127.0.0.1",
            "NOTIFY_LISTEN__INTERNAL": "tcp:0:interface=127.0.0.1",
            "NOTIFY_AUTH__JWT__SECRET": SECRET,
            "NOTIFY_API__KEYS": API_KEY,
            "NOTIFY_DRAIN__DURATION": "0s",
            **{f"NOTIFY_{key}": value for key, value in environ.items()},
        }
        self.config: Config = load(None, settings)

    async def start(self, case: Any) -> LocalServer:
        """Start the server, and stop it when the test case ends."""
        from twisted.internet import reactor

        ready: Deferred[None] = Deferred()
        self.service = build(self.config, reactor, lambda text: ready.callback(None))
        self.service.privilegedStartService()
        self.service.startService()
        case.addCleanup(self.service.stopService)
        await ready
        return self

    @property
    def hub(self) -> Hub:
        """The server's hub, which knows its clients."""
        front: Any = self.service.public.factory
        hub: Hub = front.websocket.hub
        return hub

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.service.public.port.getHost().port}/ws"

    @property
    def public(self) -> str:
        return f"http://127.0.0.1:{self.service.public.port.getHost().port}"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.service.internal.port.getHost().port}"

    async def publish(
        self, chat_id: int, content: str = "hello", workspace_id: int = 1, message_id: int = 1
    ) -> int:
        """Publish through the HTTP API; return the seq."""
        import treq

        payload = {
            "message_id": message_id,
            "chat_id": chat_id,
            "workspace_id": workspace_id,
            "sender_id": 1,
            "content": content,
            "timestamp": int(time.time()),
        }
        response = await treq.post(
            f"{self.api}/v1/publish",
            json={"subject": f"workspace.{workspace_id}.chat.{chat_id}.messages", "payload": payload},
            headers={"Authorization": f"Bearer {API_KEY}"},
            persistent=False,
        )
        answer = await response.json()
        if response.code != 200:
            raise AssertionError(answer)
        seq: int = answer["seq"]
        return seq


class Twistd(ProcessProtocol):
    """A ``twistd`` process; ``output`` is all that it prints, ``ended`` fires with its exit status."""

    def __init__(self, *arguments: str, cwd: Path, by: tuple[str, ...] = (), **environ: str) -> None:
        from twisted.internet import reactor

        self.output = ""
        self.dumped = False  # with a core dump
        self.ended: Deferred[int] = Deferred()
        self._waiting: list[tuple[re.Pattern[str], Deferred[re.Match[str]]]] = []
        environment = {**os.environ, **environ}
        command = [*by, str(BIN / "twistd"), *arguments]
        self.process: Any = reactor.spawnProcess(self, command[0], command, environment, str(cwd))  # type: ignore[attr-defined]

    def outReceived(self, data: bytes) -> None:
        self.output += data.decode()
        for pattern, done in list(self._waiting):
            if match := pattern.search(self.output):
                self._waiting.remove((pattern, done))
                done.callback(match)

    errReceived = outReceived

    def says(self, pattern: str) -> Deferred[re.Match[str]]:
        """Fires once the output matches the pattern."""
        done: Deferred[re.Match[str]] = Deferred()
        self._waiting.append((re.compile(pattern), done))
        self.outReceived(b"")
        return done

    def processEnded(self, reason: Failure) -> None:
        self.dumped = os.WCOREDUMP(getattr(reason.value, "status", None) or 0)
        status = 0 if reason.check(ProcessDone) else reason.value.exitCode or -(reason.value.signal or 0)
        waiting, self._waiting = self._waiting, []
        for pattern, done in waiting:
            done.errback(
                AssertionError(f"ended with {status} before it said {pattern.pattern!r}:\n{self.output}")
            )
        self.ended.callback(status)

    def kill(self) -> Deferred[None]:
        """Kill the process, whatever state it is in."""
        if self.ended.called:
            from twisted.internet.defer import succeed

            return succeed(None)
        self.process.signalProcess("KILL")
        gone: Deferred[None] = Deferred()
        self.ended.addBoth(lambda status: (gone.callback(None), status)[1])
        return gone


class RawClient:
    """A WebSocket client on raw bytes, for frames that a proper library refuses to send. Blocks: use a thread."""

    def __init__(self, url: str, **headers: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)
        self.buffer = b""
        lines = {
            "Host": f"{parts.hostname}:{parts.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        self.socket.sendall(f"GET {parts.path or '/'} HTTP/1.1\r\n{head}\r\n".encode())
        while b"\r\n\r\n" not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                break
            self.buffer += data
        head_bytes, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        self.head = head_bytes.decode()
        self.status = int(self.head.split()[1]) if self.head else 0

    def send(
        self, payload: bytes, opcode: int = 1, fin: bool = True, rsv: int = 0, mask: bool = True
    ) -> None:
        """Send one frame, valid or not, as the arguments say."""
        first = (0x80 if fin else 0) | rsv | opcode
        length, bit = len(payload), 0x80 if mask else 0
        if length < 126:
            header = bytes((first, bit | length))
        elif length < 65536:
            header = bytes((first, bit | 126)) + length.to_bytes(2, "big")
        else:
            header = bytes((first, bit | 127)) + length.to_bytes(8, "big")
        key = b"\1\2\3\4" if mask else b""
        body = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload)) if mask else payload
        self.socket.sendall(header + key + body)

    def send_json(self, **frame: Any) -> None:
        self.send(json.dumps(frame).encode())

    def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload; ``(-1, b"")`` if the connection has ended."""
        try:
            first, second = self._exactly(2)
            length = second & 0x7F
            if length == 126:
                length = int.from_bytes(self._exactly(2), "big")
            elif length == 127:
                length = int.from_bytes(self._exactly(8), "big")
            return first & 0x0F, self._exactly(length)
        except (EOFError, ConnectionError):
            return -1, b""

    def close_code(self) -> int:
        """Read up to the close frame; return its code, 0 if it has none, -1 if there is no close frame."""
        while True:
            opcode, payload = self.receive()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")
            if opcode == -1:
                return -1

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken
