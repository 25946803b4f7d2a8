"""What tests of outboxes use: processes of notify, NATS and PostgreSQL, the program, and what it must publish."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from random import Random
from typing import Any
from uuid import uuid4

from tests.docs.test_client import EXAMPLES
from tests.support.http import temporary_folder
from tests.support.natsd import NatsServer
from tests.support.postgres import PostgresServer
from tests.support.process import KEY, Server, wait_for

COOKBOOK = EXAMPLES / "cookbook"
sys.path.append(str(COOKBOOK))

JETSTREAM = '[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{}"]\n'


@cache
def shared_nats() -> NatsServer:
    nats = NatsServer().start()
    atexit.register(nats.remove)
    wait_for("NATS listens", nats.listens)
    return nats


@cache
def shared_notify() -> Server:
    """A server that keeps its history when it is killed."""
    server = Server(JETSTREAM.format(shared_nats().url))
    atexit.register(server.__exit__, None, None, None)
    server.start()
    return server


@cache
def shared_postgres() -> PostgresServer:
    server = PostgresServer()
    atexit.register(server.remove)
    return server.start()


class Base:
    """What both databases have in common; a subclass provides the database."""

    name: str
    environ: dict[str, str]
    db: Any

    def setUp(self: Any) -> None:
        self.notify = shared_notify()
        self.recipe = import_module(self.name)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = temporary_folder(self) / "log"
        self.addCleanup(lambda: [self.kill(one) for one in self.workers])
        self.chats = [Random(str(uuid4())).getrandbits(40) for _ in range(4)]
        self.posted: dict[int, list[str]] = {chat: [] for chat in self.chats}
        self.open()
        for chat in self.chats:
            self.found(chat)

    # --- the database: each subclass provides it ---

    def open(self) -> None:
        """Make the database, with its tables."""
        raise NotImplementedError

    def connect(self) -> Any:
        """Open another connection."""
        raise NotImplementedError

    def found(self, chat: int) -> None:
        """Make a chat."""

    def write(self, db: Any, chat: int, content: str) -> int:
        """Post a message as the application does."""
        raise NotImplementedError

    def posting(self, chat: int) -> str:
        """Code that posts to the chat from another process."""
        raise NotImplementedError

    def put(self, subject: str, payload: Any) -> None:
        """Put something into the outbox."""
        raise NotImplementedError

    def put_text(self, subject: str, payload: str) -> None:
        """Put text into the outbox, as another program might."""
        raise NotImplementedError

    def age(self) -> None:
        """Make all rows an hour older."""
        raise NotImplementedError

    @contextmanager
    def unmarked(self) -> Any:
        """A context in which no published row can be marked as published."""
        raise NotImplementedError

    # --- what tests use ---

    def rows(self) -> list[Any]:
        return list(self.db.execute("SELECT id, subject, error FROM outbox ORDER BY id").fetchall())

    def post(self, chat: int, content: str, db: Any = None) -> int:
        message_id = self.write(db or self.db, chat, content)
        self.posted[chat].append(content)
        return message_id

    def worker(self, code: str = "", notify: Server | None = None) -> subprocess.Popen[bytes]:
        """Start the program, with ``code`` in front of it."""
        environ = {
            **os.environ,
            **self.environ,
            "NOTIFY_API_URL": f"http://127.0.0.1:{(notify or self.notify).internal}",
            "NOTIFY_API_KEY": KEY,
            "PYTHONPATH": str(COOKBOOK),
        }
        program = [str(COOKBOOK / f"{self.name}.py")]
        if code:
            program = ["-c", f"import {self.name} as program; {code}; program.main()"]
        with self.log.open("ab") as log:
            one = subprocess.Popen([sys.executable, *program], env=environ, stdout=log, stderr=log)
        self.workers.append(one)
        return one

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        one.kill()
        one.wait()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until the programs have printed a text so many times."""
        wait_for(f"it says {text!r}", lambda: self.log.read_text().count(text) >= times)

    def kept(self, chat: int, notify: Server | None = None) -> list[str]:
        """The contents of a chat's history."""
        found: list[str] = []
        since = ""
        while True:
            path = f"/v1/history?subject=workspace.1.chat.{chat}.messages&limit=1000{since}"
            status, page = (notify or self.notify).http("GET", path)
            assert status == 200, page
            found += [one["payload"]["content"] for one in page["messages"]]
            since = f"&since={page['next']}"
            if page["complete"]:
                return found

    def notifications(self, user: int, notify: Server) -> list[str]:
        _, page = notify.http("GET", f"/v1/history?subject=workspace.1.user.{user}.notifications")
        return [one["payload"]["notification_id"] for one in page["messages"]]

    def emptied(self: Any) -> None:
        """Wait until nothing is left to publish."""
        waiting = lambda: [row for row in self.rows() if row[2] is None]  # noqa: E731
        try:
            wait_for("the outbox is empty", lambda: not waiting())
        except TimeoutError:
            raise AssertionError(f"{waiting()}\n{self.log.read_text()}") from None

    def check(self: Any, notify: Server | None = None) -> None:
        """Assert that nothing is lost, nothing came twice, and each chat is in order."""
        for chat, posted in self.posted.items():
            self.assertEqual(self.kept(chat, notify), posted)
