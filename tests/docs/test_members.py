"""docs/auth.md, "When a membership changes": the recipe, run with each authenticator."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from notify.auth.tokens import issue
from notify.cli.api import ask
from notify.client import Publisher
from tests.docs.test_client import EXAMPLES, Program
from tests.support.auth import SECRET, serve
from tests.support.cli import KEY, Server
from tests.support.programs import ROOT

PAGE = (ROOT / "docs" / "auth.md").read_text()


class Recipe(Server):
    """A backend with a list of members; the program of the page is user 1's client."""

    timeout = 60

    async def setUp(self) -> None:
        self.members: set[int] = set()
        self.backend = await serve(self, self.answer)
        await super().setUp()
        self.program = Program(
            {**self.environ, "TOKEN_URL": self.backend + "token"},
            sys.executable,
            str(EXAMPLES / "members.py"),
        )
        self.addCleanup(self.program.stop)
        self.assertEqual(await self.program.line(), "connected")

    def answer(self, request: Any) -> bytes:
        if request.path == b"/token":
            return issue(SECRET, 1, 1, 600, time.time(), self.listed()).encode()
        asked = json.loads(request.content.read())
        if "questions" in asked:
            return json.dumps(
                {"allowed": [one["chat_id"] in self.members for one in asked["questions"]]}
            ).encode()
        return json.dumps({"allowed": asked["chat_id"] in self.members}).encode()

    def listed(self) -> set[int] | None:
        return self.members

    async def publish(self, method: str, **fields: Any) -> None:
        def call() -> None:
            with Publisher(self.environ["NOTIFY_API_URL"], KEY) as publisher:
                getattr(publisher, method)(workspace_id=1, **fields)

        await deferToThread(call)

    async def tell(self, joined: list[int]) -> None:
        await self.publish("notify", user_id=1, kind="membership", data={"joined": joined})

    async def say(self, chat_id: int, content: str) -> None:
        await self.publish("chat", chat_id=chat_id, sender_id=7, content=content)

    async def present(self, chat_id: int) -> None:
        """Wait until user 1 is in a chat."""
        while True:
            address = f"{self.environ['NOTIFY_API_URL']}/v1/presence?workspace_id=1&chat_id={chat_id}"
            answer: Any = await deferToThread(ask, address, KEY)
            if answer["users"]:
                return
            await deferLater(reactor, 0.05)  # type: ignore[arg-type]

    async def joins(self) -> None:
        self.members.add(7)
        await self.tell([7])
        await self.present(7)
        await self.say(7, "welcome")
        self.assertEqual(await self.program.line(), "7 welcome")


class ListedChats(Recipe):
    settings: ClassVar[dict[str, str]] = {"NOTIFY_AUTH__JWT__CHATS_CLAIM": "chats"}

    async def test_who_is_invited_joins_at_once_and_who_is_removed_hears_no_more(self) -> None:
        await self.joins()
        self.members.remove(7)
        await self.tell([])
        self.assertEqual(await self.program.line(), "7 forbidden")


class AskedBackend(Recipe):
    async def setUp(self) -> None:
        url = await serve(self, self.answer)
        self.settings = {
            "NOTIFY_AUTH__PLUGIN": "webhook",
            "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_URL": url + "authorize",
            "NOTIFY_AUTH__WEBHOOK__AUTHORIZE_MANY_URL": url + "authorize-many",
            "NOTIFY_AUTH__WEBHOOK__RECHECK": "500ms",
            "NOTIFY_AUTH__WEBHOOK__JWT__SECRET": SECRET,
        }
        await super().setUp()

    def listed(self) -> None:
        return None

    async def test_who_is_removed_hears_no_more_though_nobody_told_the_client(self) -> None:
        await self.joins()
        self.members.remove(7)
        self.assertEqual(await self.program.line(), "7 forbidden")


class Printed(SynchronousTestCase):
    def test_what_is_printed_is_what_is_tested(self) -> None:
        [(name, code)] = re.findall(r"<!-- examples/(\S+) -->\n+```python\n(.*?)```", PAGE, re.DOTALL)
        self.assertEqual(code, (EXAMPLES / name).read_text())
