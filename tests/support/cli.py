"""A whole server in this process, with commands run in a thread or in a separate process."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase

from notify import config, dev, tap
from notify.auth.tokens import issue
from notify.cli import main as cli
from notify.cli.api import ask
from notify.cli.terminal import Terminal
from tests.support.auth import SECRET

KEY = "an-api-key-for-tests"


class Result:
    """The exit status and output of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


def command(*arguments: str, stdin: bytes = b"", tty: bool = False, **environ: str) -> Result:
    """Run a command in this thread, and wait for it."""
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(io.BytesIO(stdin), out, err, environ, tty)
    return Result(cli.run(arguments, terminal), out.getvalue(), err.getvalue())


class Server(TestCase):
    """A running server; ``run_command`` and ``spawn`` run commands that know its address."""

    #: additional settings, as environment variables
    settings: ClassVar[dict[str, str]] = {}

    async def setUp(self) -> None:
        settings = {
            "NOTIFY_DRAIN__DURATION": "0s",
            "NOTIFY_LISTEN__PUBLIC": "tcp:0:interface=127.0.0.1",
            "NOTIFY_LISTEN__INTERNAL": "tcp:0:interface=127.0.0.1",
            "NOTIFY_AUTH__JWT__SECRET": SECRET,
            "NOTIFY_API__KEYS": KEY,
            **self.settings,
        }
        ready: Deferred[None] = Deferred()
        self.patch(dev, "instructions", lambda *_: "")
        self.service = tap.build(config.load(None, settings), reactor, lambda shown: ready.callback(None))
        self.service.privilegedStartService()
        self.service.startService()
        self.addCleanup(self.service.stopService)
        await ready
        ports = [listener.port.getHost().port for listener in (self.service.public, self.service.internal)]
        self.environ = {
            "NOTIFY_URL": f"ws://127.0.0.1:{ports[0]}/ws",
            "NOTIFY_API_URL": f"http://127.0.0.1:{ports[1]}",
            "NOTIFY_API_KEY": KEY,
            "NOTIFY_TOKEN": self.token(1),
        }

    def token(self, user_id: int, chats: list[int] | None = None) -> str:
        return issue(SECRET, user_id, 1, 600, time.time(), chats)

    async def history(self, subject: str) -> list[Any]:
        """The payloads that were published to a subject."""
        address = f"{self.environ['NOTIFY_API_URL']}/v1/history?limit=1000&subject={subject}"
        answer: Any = await deferToThread(ask, address, KEY)
        return [message["payload"] for message in answer["messages"]]

    async def cut_line(self) -> tuple[str, Callable[[], None]]:
        """A second address of the server, and a function that cuts all connections to it."""
        made: list[Any] = []

        class Line(ProxyFactory):
            def buildProtocol(self, address: Any) -> Any:
                made.append(super().buildProtocol(address))
                return made[-1]

        host, number = "127.0.0.1", int(self.environ["NOTIFY_URL"].split(":")[2].split("/")[0])
        port = reactor.listenTCP(0, Line(host, number), interface=host)  # type: ignore[attr-defined]

        def cut() -> None:
            lines, made[:] = list(made), []
            for line in lines:
                if line.transport.connected:
                    line.transport.abortConnection()

        self.addCleanup(port.stopListening)
        self.addCleanup(cut)
        return f"ws://{host}:{port.getHost().port}/ws", cut

    async def run_command(
        self, *arguments: str, stdin: bytes = b"", tty: bool = False, **environ: str
    ) -> Result:
        """Run a command in a thread, because this thread runs the server."""
        return await deferToThread(command, *arguments, stdin=stdin, tty=tty, **{**self.environ, **environ})

    def spawn(self, *arguments: str, **environ: str) -> Process:
        """Run a command in a separate process."""
        process = Process()
        reactor.spawnProcess(  # type: ignore[attr-defined]
            process,
            sys.executable,
            [sys.executable, "-m", "notify.cli.main", *arguments],
            env={**os.environ, **self.environ, **environ},
        )
        self.addCleanup(process.kill)
        return process


class Process(ProcessProtocol):
    """A process; a test can wait for its output."""

    def __init__(self) -> None:
        self.out = self.err = ""
        self.status: int | None = None
        self._waiting: list[tuple[Callable[[], Any], Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        self.out += data.decode()
        self._look()

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode()
        self._look()

    def processEnded(self, reason: Any) -> None:
        self.status = 0 if isinstance(reason.value, ProcessDone) else (reason.value.exitCode or -1)
        self._look()

    def _look(self) -> None:
        for waiting in list(self._waiting):
            condition, done = waiting
            if condition() or self.status is not None:
                self._waiting.remove(waiting)
                done.callback(None)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition on the output holds; fails if the process ends without it, or after 20 s."""
        if not condition() and self.status is None:
            done: Deferred[None] = Deferred()
            self._waiting.append((condition, done))
            await done.addTimeout(20, reactor)  # type: ignore[arg-type]
        assert condition(), (self.status, self.out, self.err)

    async def ended(self) -> int:
        await self.until(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    def signal(self, name: str) -> None:
        assert self.transport is not None
        self.transport.signalProcess(name)

    async def kill(self) -> None:
        if self.status is None:
            self.signal("KILL")
            await self.ended()
