"""examples/chat while its processes die and stop: each client gets its messages once, in order, and no others'."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from contextlib import closing
from itertools import count
from typing import Any
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import AsyncioClient, Refused, Settings, Token
from tests.support.chat import Chat, Person
from tests.support.process import wait_for

LAUNCH, GRACE = 1, 2


class Listener(threading.Thread):
    """A user's client that works as the page does: it loads the state from the backend, and adds live messages."""

    def __init__(self, chat: Chat, person: Person, chat_id: int) -> None:
        super().__init__(daemon=True)
        self.chat, self.person, self.chat_id = chat, person, chat_id
        #: what is shown, by id; ids received since the last load; everything that was ever shown
        self.shown: dict[int, str] = {}
        self.since: list[int] = []
        self.ever: set[str] = set()
        self.wrong: list[str] = []
        self.over = ""
        self.tokens: list[str] = []
        self.start()

    def end(self) -> None:
        """Wait until it has received the last message, or was refused."""
        self.join(60)
        assert not self.is_alive(), f"it waits still, and has {list(self.shown.values())}"

    def run(self) -> None:
        asyncio.run(self.listen())

    async def ask(self, path: str) -> Any:
        """The backend's answer, as soon as there is one."""
        while True:
            try:
                status, answer = await asyncio.to_thread(self.person.ask, "GET", path)
            except OSError:
                status = 503
            if status < 500:
                return answer
            await asyncio.sleep(0.1)

    async def token(self) -> Any:
        told = await self.ask("token")
        self.tokens.append(told["value"])
        return Token(told["value"], told["expiresAt"])

    async def load(self, position: object) -> None:
        state = await self.ask(f"chats/{self.chat_id}")
        self.shown = {one["message_id"]: one["content"] for one in state.get("messages", ())}
        self.since = []
        self.look()

    def look(self) -> None:
        """Raise EOFError if the last message has been shown."""
        self.ever.update(self.shown.values())
        if "the end" in self.shown.values():
            raise EOFError

    async def listen(self) -> None:
        url = f"ws://127.0.0.1:{self.chat.public}/ws"
        async with AsyncioClient(url, self.token, settings=Settings(backoff_cap=1.0)) as client:
            try:
                async for message in client.chat(self.chat_id, load=self.load):
                    if self.since and message.message_id <= self.since[-1]:
                        self.wrong.append(f"{message.content} behind {self.since[-1]}")
                    self.since.append(message.message_id)
                    self.shown[message.message_id] = message.content
                    self.look()
            except Refused as refused:
                self.over = refused.code
            except EOFError:
                pass


class Chaos(TestCase):
    timeout = 180

    def test_whatever_dies_and_stops_each_message_comes_once_and_in_order(self) -> Deferred[None]:
        return deferToThread(self.visit)

    def visit(self) -> None:
        with Chat() as chat:
            ada, grace, eve = (Person(chat.url, name) for name in ("Ada", "Grace", "Eve"))
            self.listeners = listeners = [Listener(chat, person, LAUNCH) for person in (ada, ada, grace, eve)]
            try:
                self.live(chat, ada)
            finally:
                for listener in listeners:
                    listener.end()
            logs = "".join(log.read_text() for log in chat.data.glob("*.log"))
            rows = chat.rows("SELECT id, text FROM messages ORDER BY id")
        self.assertEqual([text for _, text in rows], self.posted)
        first, second, hers, eves = listeners
        for listener in (first, second):
            self.assertEqual((sorted(listener.shown.items()), listener.wrong, listener.over), (rows, [], ""))
        # A removed member has received nothing from after the removal; a user who never was a member, nothing at
        # all.
        before = self.posted.index("she is gone")
        self.assertLessEqual(hers.ever, set(self.posted[:before]))
        self.assertEqual((hers.wrong, hers.over, eves.ever, eves.over), ([], "forbidden", set(), "forbidden"))
        for secret in (*self.posted, *first.tokens, *eves.tokens, ada.cookie.partition("=")[2]):
            self.assertNotIn(secret, logs)

    def live(self, chat: Chat, ada: Person) -> None:
        self.posted: list[str] = []
        numbers = count()

        def post(text: str = "") -> None:
            """Post as the page does: with the same key until the backend answers."""
            text, key = text or f"message number {next(numbers)}", str(uuid4())
            self.posted.append(text)

            def answered() -> bool:
                try:
                    return ada.ask("POST", f"chats/{LAUNCH}/messages", {"key": key, "text": text})[0] == 201
                except OSError:
                    return False

            wait_for(f"{text} is taken", answered)

        def stop(name: str) -> int:
            """Stop a process while it is not writing: SQLite has one writer, and nobody could post meanwhile."""
            pid = chat.pid(name)
            while True:
                os.kill(pid, signal.SIGSTOP)
                with closing(sqlite3.connect(chat.data / "chat.sqlite", timeout=0.2)) as db:
                    try:
                        db.execute("BEGIN IMMEDIATE")
                    except sqlite3.OperationalError:
                        os.kill(pid, signal.SIGCONT)
                    else:
                        return pid

        post()
        for listener in self.listeners[:3]:
            wait_for("it listens", lambda listener=listener: listener.shown)  # type: ignore[misc]
        worker = stop("worker")
        post()
        chat.kill("notify")
        post()
        os.kill(worker, signal.SIGCONT)
        post()
        chat.kill("backend")
        post()
        notify = stop("notify")
        post()
        chat.kill("worker")
        post()
        os.kill(notify, signal.SIGCONT)
        post()
        before = chat.said().count("started again")
        for name in ("backend", "notify", "worker"):
            os.kill(chat.pid(name), signal.SIGKILL)
        post()
        wait_for("all are back", lambda: chat.said().count("started again") == before + 3)
        worker = stop("worker")
        wait_for("she is removed", lambda: ada.ask("DELETE", f"chats/{LAUNCH}/members/{GRACE}")[0] == 204)
        post("she is gone")
        chat.kill("worker")
        post("the end")
