"""The programs in docs/client.md and the README run as they are printed."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.support.programs import ROOT, node_modules, program
from tests.support.running import API_KEY, LocalServer, token

EXAMPLES = ROOT / "docs" / "examples"
PRINTED = re.compile(r"<!-- examples/(\S+) -->\n+```\w+\n(.*?)```", re.DOTALL)


class Program(ProcessProtocol):
    """A program that runs until it is stopped; ``line`` fires with the next line of its output."""

    def __init__(self, environ: dict[str, str], *command: str) -> None:
        self.output, self.errors = "", ""
        self.ended: Deferred[None] = Deferred()
        self._waiting: Deferred[str] | None = None
        self.process: Any = reactor.spawnProcess(  # type: ignore[attr-defined]
            self, command[0], command, {**os.environ, **environ}, str(ROOT)
        )

    def line(self) -> Deferred[str]:
        waiting: Deferred[str] = Deferred()
        self._waiting = waiting
        self._look()
        return waiting

    def _look(self) -> None:
        if self._waiting is not None and "\n" in self.output:
            line, _, self.output = self.output.partition("\n")
            waiting, self._waiting = self._waiting, None
            waiting.callback(line)

    def outReceived(self, data: bytes) -> None:
        self.output += data.decode()
        self._look()

    def errReceived(self, data: bytes) -> None:
        self.errors += data.decode()

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)
        if self._waiting is not None:
            self._waiting.errback(AssertionError(f"it ended: {self.errors}"))

    def stop(self) -> Deferred[None]:
        if not self.ended.called:
            self.process.signalProcess("KILL")
        return self.ended


class Printed(TestCase):
    def test_what_is_printed_is_what_is_tested(self) -> None:
        found = dict(PRINTED.findall((ROOT / "docs" / "client.md").read_text()))
        self.assertEqual(set(found), {"first.py", "first.mjs", "publish.py", "publish_asyncio.py"})
        found |= {
            f"{name} in README": code for name, code in PRINTED.findall((ROOT / "README.md").read_text())
        }
        for name, code in found.items():
            self.assertEqual(code, (EXAMPLES / name.removesuffix(" in README")).read_text(), name)
            self.assertLess(len(code.splitlines()), 15, name)


class Running(TestCase):
    timeout = 60

    async def _receives(self, *command: str) -> None:
        server = await LocalServer().start(self)
        address = {"NOTIFY_URL": server.ws, "NOTIFY_TOKEN": token(5)}
        reader = Program(address, *command)
        self.addCleanup(reader.stop)
        arriving = reader.line()
        await self._until_present(server, reader)
        key = {"NOTIFY_API_URL": server.api, "NOTIFY_API_KEY": API_KEY}
        publisher = Program(key, sys.executable, str(EXAMPLES / "publish.py"))
        self.addCleanup(publisher.stop)
        self.assertRegex(await publisher.line(), r"^\S+ 1$")
        self.assertEqual(await arriving, "7 Hello")

    async def _until_present(self, server: LocalServer, reader: Program) -> None:
        url = f"{server.api}/v1/presence?workspace_id=1&chat_id=1"
        while not reader.ended.called:
            headers = {"Authorization": f"Bearer {API_KEY}"}
            response = await treq.get(url, headers=headers, persistent=False)
            if "5" in await response.text():
                return
            await deferLater(reactor, 0.05)
        self.fail(f"it ended: {reader.errors}")

    async def test_publishing_on_asyncio(self) -> None:
        server = await LocalServer().start(self)
        key = {"NOTIFY_API_URL": server.api, "NOTIFY_API_KEY": API_KEY}
        publisher = Program(key, sys.executable, str(EXAMPLES / "publish_asyncio.py"))
        self.addCleanup(publisher.stop)
        self.assertEqual({(await publisher.line()).split()[1] for _ in range(3)}, {"1", "2", "3"})

    async def test_the_first_program_in_python(self) -> None:
        await self._receives(sys.executable, str(EXAMPLES / "first.py"))

    async def test_the_first_program_in_javascript(self) -> None:
        # Node has a WebSocket of its own from version 22 on; with older versions, a user preloads one just like this.
        preload = (node_modules().parent / "websocket.mjs").as_uri()
        await self._receives(program("node"), "--import", preload, str(EXAMPLES / "first.mjs"))
