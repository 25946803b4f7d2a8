"""docs/cookbook/unread.md and push.md: their programs, with a real server, real clients and the outbox's worker."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import AsyncioClient
from tests.docs.test_client import EXAMPLES
from tests.support.http import temporary_folder
from tests.support.natsd import until
from tests.support.process import KEY, Server, token

COOKBOOK = EXAMPLES / "cookbook"
sys.path.append(str(COOKBOOK))

ME, OTHER, CHAT = 1, 2, 10


class Recipe(TestCase):
    """A backend's database and its worker, and a server."""

    timeout = 120

    async def setUp(self) -> None:
        self.push, self.unread = import_module("push"), import_module("unread")
        self.notify = Server()
        self.addCleanup(self.notify.__exit__, None, None, None)
        await deferToThread(self.notify.start)
        path = str(temporary_folder(self) / "db")
        self.environ = {
            "DATABASE": path,
            "NOTIFY_API_URL": f"http://127.0.0.1:{self.notify.internal}",
            "NOTIFY_API_KEY": KEY,
        }
        self.db = self.push.connect(path)
        self.addCleanup(self.db.close)
        self.db.executemany("INSERT INTO members VALUES (?, ?)", [(CHAT, ME), (CHAT, OTHER)])
        self.run_program("outbox_sqlite")

    def run_program(self, name: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, **self.environ}
        one = subprocess.Popen(
            [sys.executable, str(COOKBOOK / f"{name}.py")], env=environ, stdout=subprocess.PIPE
        )
        self.addCleanup(one.wait)
        self.addCleanup(one.kill)
        return one

    def post(self, sender_id: int, content: str = "x") -> int:
        message_id: int = self.push.post(self.db, 1, CHAT, sender_id, content)
        return message_id

    def client(self, user_id: int, **options: Any) -> AsyncioClient:
        return AsyncioClient(f"ws://127.0.0.1:{self.notify.public}/ws", token(user_id), **options)

    def task(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine until the test is over; one that fails, fails the test."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)

        async def end() -> None:
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass

        self.addCleanup(lambda: Deferred.fromFuture(asyncio.ensure_future(end())))
        return task


class Unread(Recipe):
    #: the backend's errors, one for each of the next requests
    away: tuple[str, ...] | list[str] = ()

    async def device(self, user_id: int, **options: Any) -> Any:
        """Start a device; return its counts. ``loads`` has an entry for each time that it asked the backend."""
        recipe = import_module("unread_client")
        loads: list[int] = []

        async def ask(chat_id: int) -> Any:
            loads.append(chat_id)
            if self.away:
                raise ConnectionError(self.away.pop())
            return self.unread.state(self.db, user_id, chat_id)

        counts = recipe.Unread(user_id, ask)
        counts.loads = loads
        client = self.client(user_id, on_lost=lambda loss: counts.lost(loss), **options)
        await Deferred.fromFuture(asyncio.ensure_future(client.start()))
        self.addCleanup(lambda: Deferred.fromFuture(asyncio.ensure_future(client.close())))
        self.task(counts.notifications(client))
        self.task(counts.chat(client, CHAT))
        await until(lambda: loads)
        return counts

    def read(self, message_id: int) -> Any:
        return self.unread.mark_read(self.db, 1, ME, CHAT, message_id)

    async def test_what_others_write_is_counted_and_read_on_all_devices_of_the_user(self) -> None:
        first = self.post(OTHER)
        phone, desk = await self.device(ME), await self.device(ME)
        other = await self.device(OTHER)
        last = [self.post(OTHER), self.post(ME), self.post(OTHER)][-1]
        for counts, expected in ((phone, 3), (desk, 3), (other, 1)):
            await until(lambda counts=counts, expected=expected: counts[CHAT] == expected)
        # Read up to the first message on one device: the others hear of it.
        phone.apply(self.read(first))
        self.assertEqual(phone[CHAT], 2)
        await until(lambda: desk[CHAT] == 2)
        desk.apply(self.read(last))
        await until(lambda: phone[CHAT] == 0)
        self.assertEqual(other[CHAT], 1)
        self.assertEqual(len(phone.loads), 1)

    async def test_a_mark_that_comes_late_or_twice_changes_nothing(self) -> None:
        ids = [self.post(OTHER) for _ in range(5)]
        counts = await self.device(ME)
        old = self.read(ids[1])
        new = self.read(ids[3])
        for state in (new, old, self.read(ids[0]), new, self.read(10**12)):
            counts.apply(state)
            self.assertLessEqual(counts[CHAT], 1)
        self.assertEqual(counts[CHAT], 0)
        # A mark beyond the end does not mark later messages as read.
        self.post(OTHER)
        await until(lambda: counts[CHAT] == 1)
        self.assertEqual(self.unread.state(self.db, ME, CHAT)["unread"], 1)
        kinds = "SELECT count(*) FROM outbox WHERE subject LIKE '%notifications'"
        await until(lambda: self.db.execute(kinds).fetchall() == [(0,)])

    async def test_a_mark_of_nothing_or_of_no_message_changes_nothing_and_is_not_told(self) -> None:
        nothing = self.unread.state(self.db, ME, CHAT)
        for wrong in (0, -1, -(2**70), 2**70):
            self.assertEqual(self.read(wrong), nothing)
        self.assertEqual(self.db.execute("SELECT * FROM reads").fetchall(), [])
        self.assertEqual(self.db.execute("SELECT * FROM outbox").fetchall(), [])

    async def test_it_counts_no_further_than_a_badge_shows(self) -> None:
        for _ in range(105):
            self.post(OTHER)
        self.assertEqual(self.unread.state(self.db, ME, CHAT)["unread"], self.unread.MOST)

    async def test_who_was_away_has_the_count_again_and_who_lost_the_history_asks(self) -> None:
        counts = await self.device(ME)
        first = self.post(OTHER)
        await until(lambda: counts[CHAT] == 1)
        # The memory broker's history ends with its process: chat and notifications are both lost.
        self.notify.process.kill()
        await deferToThread(self.notify.process.wait)
        self.read(first)
        self.post(OTHER)
        self.post(OTHER)
        await deferToThread(self.notify.start)
        await until(lambda: counts[CHAT] == 2, 60)
        self.assertGreater(len(counts.loads), 1)
        self.post(OTHER)
        await until(lambda: counts[CHAT] == 3)

    async def test_it_asks_until_the_backend_answers(self) -> None:
        recipe = import_module("unread_client")
        self.patch(recipe, "AGAIN", 0.01)
        self.away = ["it starts"]
        self.post(OTHER)
        counts = await self.device(ME)
        await until(lambda: counts[CHAT] == 1)
        # As when a machine is started again: both are away, and notify is back first.
        self.notify.process.kill()
        await deferToThread(self.notify.process.wait)
        self.away = ["still away"] * 5
        self.post(OTHER)
        await deferToThread(self.notify.start)
        await until(lambda: counts[CHAT] == 2, 60)
        self.post(OTHER)
        await until(lambda: counts[CHAT] == 3)


class Push(Recipe):
    async def setUp(self) -> None:
        await super().setUp()
        self.sent: list[tuple[int, int]] = []
        for name, value in self.environ.items():
            self.patch(os, "environ", {**os.environ, name: value})

    async def look(self, later: float) -> list[tuple[int, int]]:
        """The pushes of a look that takes place this many seconds later."""
        self.sent.clear()

        def work() -> None:
            db = self.push.connect(self.environ["DATABASE"])
            self.push.look(db, self.push.present, lambda *what: self.sent.append(what), time.time() + later)
            db.close()

        await deferToThread(work)
        return list(self.sent)

    async def enter(self, user_id: int) -> AsyncioClient:
        client = self.client(user_id)
        await Deferred.fromFuture(asyncio.ensure_future(client.start()))
        self.addCleanup(lambda: Deferred.fromFuture(asyncio.ensure_future(client.close())))
        await Deferred.fromFuture(asyncio.ensure_future(client.chat(CHAT).ready()))
        return client

    async def leave(self, client: AsyncioClient) -> None:
        await Deferred.fromFuture(asyncio.ensure_future(client.close()))
        while await deferToThread(self.push.present, CHAT):
            pass

    def waiting(self) -> int:
        [[count]] = self.db.execute("SELECT count(*) FROM pushes")
        return int(count)

    async def test_who_is_away_gets_one_and_who_reads_gets_none(self) -> None:
        self.post(ME)
        last = self.post(ME)
        self.assertEqual(await self.look(self.push.DELAY - 1), [])
        self.assertEqual(await self.look(self.push.DELAY), [(OTHER, CHAT)])
        self.assertEqual((await self.look(10**6), self.waiting()), ([], 0))
        other = await self.enter(OTHER)
        self.unread.mark_read(self.db, 1, OTHER, CHAT, last + 1)
        last = self.post(ME)
        self.unread.mark_read(self.db, 1, OTHER, CHAT, last)
        await self.leave(other)
        self.assertEqual((await self.look(self.push.DELAY), self.waiting()), ([], 0))

    async def test_who_closes_without_reading_is_found_by_the_next_look(self) -> None:
        other = await self.enter(OTHER)
        self.post(ME)
        self.assertEqual(await self.look(self.push.DELAY), [])
        await self.leave(other)
        self.assertEqual(await self.look(2 * self.push.DELAY), [])  # not yet
        self.assertEqual(await self.look(4 * self.push.DELAY), [(OTHER, CHAT)])

    async def test_who_is_there_and_does_not_read_gets_one_in_the_end(self) -> None:
        await self.enter(OTHER)
        self.post(ME)
        looks = [await self.look(1000.0 * n) for n in range(1, self.push.LOOKS + 2)]
        self.assertEqual(looks, [[]] * (self.push.LOOKS - 1) + [[(OTHER, CHAT)], []])

    async def test_a_newer_message_is_not_forgotten_with_an_older_one(self) -> None:
        first = self.post(ME)
        self.unread.mark_read(self.db, 1, OTHER, CHAT, first)
        self.post(ME)
        self.assertEqual(await self.look(self.push.DELAY), [(OTHER, CHAT)])

        def while_it_is_sent(*what: int) -> None:
            self.sent.append(what)
            self.post(ME)

        self.post(ME)
        self.sent.clear()
        self.push.look(self.db, lambda chat_id: set(), while_it_is_sent, 1e12)
        self.assertEqual((self.sent, self.waiting()), ([(OTHER, CHAT)], 1))

    async def test_where_a_push_fails_or_nobody_knows_who_is_there(self) -> None:
        await self.enter(OTHER)
        self.notify.process.kill()
        await deferToThread(self.notify.process.wait)
        self.post(ME)

        def fail(*what: int) -> None:
            raise ConnectionError

        self.push.look(self.db, lambda chat_id: set(), fail, 1e10)
        self.assertEqual(self.waiting(), 1)
        self.assertEqual(await self.look(1e11), [(OTHER, CHAT)])

    async def test_a_server_that_does_not_answer_is_waited_for_once_and_not_for_each_chat(self) -> None:
        for chat in range(CHAT + 1, CHAT + 20):
            self.db.execute("INSERT INTO members VALUES (?, ?)", (chat, OTHER))
            self.push.post(self.db, 1, chat, ME, "x")
        self.patch(self.push, "PATIENCE", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            self.patch(os, "environ", {**os.environ, "NOTIFY_API_URL": url})
            self.assertEqual(len(await self.look(self.push.DELAY)), 19)
            server.setblocking(False)
            server.accept()[0].close()
            self.assertRaises(BlockingIOError, server.accept)

    async def test_who_is_not_a_member_any_more_gets_none(self) -> None:
        self.post(ME)
        self.db.execute("DELETE FROM members WHERE user_id = ?", (OTHER,))
        self.assertEqual((await self.look(self.push.DELAY), self.waiting()), ([], 0))

    async def test_the_program_looks_by_itself(self) -> None:
        self.post(ME)
        self.db.execute("UPDATE pushes SET due = 0")
        program = self.run_program("push")
        assert program.stdout is not None
        line = await deferToThread(program.stdout.readline)
        self.assertEqual(line, f"user {OTHER}: new messages in chat {CHAT}\n".encode())
