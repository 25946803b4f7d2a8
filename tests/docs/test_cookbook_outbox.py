"""docs/cookbook/outbox.md: its programs, with real processes of notify, NATS and PostgreSQL that are killed meanwhile."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import threading
from contextlib import contextmanager
from importlib import import_module
from random import Random
from time import sleep
from typing import Any
from uuid import uuid4

import psycopg
from twisted.trial.unittest import SynchronousTestCase

from tests.docs.outboxes import Base, shared_nats, shared_postgres
from tests.support.http import temporary_folder
from tests.support.pages import Asked, serve_pages
from tests.support.process import Server, wait_for
from tests.support.recipes import answer


class Hanging(SynchronousTestCase):
    def test_a_server_that_does_not_answer_is_waited_for_once_and_not_for_each_chat(self) -> None:
        recipe = import_module("outbox")
        self.patch(recipe, "PATIENCE", 0.3)
        rows = [recipe.Row(n, f"key-{n}", f"workspace.1.chat.{n}.messages", "{}", 3600.0) for n in range(5)]
        with socket.create_server(("127.0.0.1", 0)) as server:
            outbox = recipe.Outbox(f"http://127.0.0.1:{server.getsockname()[1]}", "a-key")
            self.assertEqual(outbox.deliver(rows), ([], {}))
            self.assertEqual(sorted(outbox.resting()), sorted(row.subject for row in rows))
            server.setblocking(False)
            server.accept()[0].close()
            self.assertRaises(BlockingIOError, server.accept)


class Slow(SynchronousTestCase):
    def test_a_server_that_is_slow_to_tell_its_history_does_not_have_keys_forgotten_meanwhile(self) -> None:
        recipe = import_module("outbox")
        self.patch(recipe, "PATIENCE", 0.5)
        asked: list[str] = []

        def slow(request: Asked) -> tuple[int, str, bytes] | None:
            if request.path.startswith("/v1/history"):
                asked.append(request.path)
                sleep(0.2)
                return answer({"messages": [], "complete": True})
            return None

        outbox = recipe.Outbox(serve_pages(self, temporary_folder(self), answer=slow), "a-key")
        rows = [recipe.Row(n, f"key-{n}", f"workspace.1.chat.{n}.messages", "{}", 3600.0) for n in range(20)]
        # This row is young: while it waits for the others, its key grows old.
        rows.append(recipe.Row(20, "key-20", "workspace.1.chat.20.messages", "{}", recipe.REMEMBERED - 1.0))
        outbox.deliver(rows)
        self.assertIn(len(asked), range(1, 5))
        # Rows that were not looked for are not published either.
        self.assertLessEqual({row.subject for row in rows[4:20]}, set(outbox.resting()))


class Behaviour(Base):
    """Tests that run with each database."""

    def test_what_is_posted_is_published_in_order(self: Any) -> None:
        self.worker()
        for n in range(60):
            self.post(self.chats[n % 4], f"{n} é🙂\u0001")
        self.emptied()
        self.check()

    def test_what_is_not_committed_is_not_published(self: Any) -> None:
        self.post(self.chats[0], "before")
        hanging = "put = program.put; program.put = lambda *all: (put(*all), print('in the middle', flush=True), time.sleep(600))"
        application = self.worker(
            f"import os, time; {hanging}; program.main = lambda: {self.posting(self.chats[0])}"
        )
        self.says("in the middle")
        self.kill(application)
        self.worker()
        self.post(self.chats[0], "after")
        self.emptied()
        self.check()
        self.assertEqual(self.rows(), [])

    def test_killed_between_publishing_and_marking_it_publishes_nothing_twice(self: Any) -> None:
        for n in range(20):
            self.post(self.chats[n % 2], str(n))
        for _ in range(2):
            with self.unmarked():
                one = self.worker()
                wait_for("all is published", lambda: sum(len(self.kept(chat)) for chat in self.chats) == 20)
                self.kill(one)
            self.assertEqual(len(self.rows()), 20)
        self.post(self.chats[0], "20")
        self.worker()
        self.emptied()
        self.check()

    def test_after_the_server_has_forgotten_their_keys_rows_that_it_has_are_not_published_again(
        self: Any,
    ) -> None:
        with Server("[broker.memory]\nduplicate_window = '1s'\n") as notify:
            for n in range(12):
                self.post(self.chats[n % 3], str(n))
            user = self.chats[0]
            notification = {
                "notification_id": "n-1",
                "workspace_id": 1,
                "user_id": user,
                "kind": "k",
                "data": 1,
                "timestamp": 1,
            }
            self.put(f"workspace.1.user.{user}.notifications", notification)
            with self.unmarked():
                one = self.worker(notify=notify)
                wait_for(
                    "all is published", lambda: sum(len(self.kept(chat, notify)) for chat in self.chats) == 12
                )
                wait_for("the notification, too", lambda: self.notifications(user, notify) == ["n-1"])
                self.kill(one)
            forgotten = lambda: notify.publish(1, "x", **{"Idempotency-Key": "k"})[1]["seq"]  # noqa: E731
            # Meanwhile, others publish more than a page of history has.
            large = ["z" * 60_000] * 100
            for number, content in enumerate(large, 1000):
                self.assertEqual(notify.publish(self.chats[0], content, number)[0], 200)
            self.posted[self.chats[0]] += large
            first = forgotten()
            wait_for("its key is forgotten", lambda: forgotten() != first)
            self.age()
            self.post(self.chats[0], "12")
            self.put("no subject at all", {"message_id": 1})
            self.age()
            self.worker(notify=notify)
            self.emptied()
            self.check(notify)
            self.assertEqual(self.notifications(user, notify), ["n-1"])
            self.assertEqual([row[1] for row in self.rows()], ["no subject at all"])

    def test_while_notify_is_away_rows_wait_and_those_of_before_are_first(self: Any) -> None:
        self.notify.process.kill()
        self.notify.process.wait()
        try:
            self.worker("import outbox; outbox.PATIENCE = 2")
            for n in range(30):
                self.post(self.chats[n % 4], str(n))
            self.says("has to wait: unreachable")
            self.age()  # so that the history is asked, too
            self.post(self.chats[0], "30")
            self.says("Connection refused")
        finally:
            self.notify.start()
        self.post(self.chats[0], "31")
        self.emptied()
        self.check()

    def test_while_notify_cannot_store_anything_rows_wait(self: Any) -> None:
        self.worker("import outbox; outbox.PATIENCE = 2")
        self.post(self.chats[0], "before")
        self.emptied()
        shared_nats().kill()
        try:
            for n in range(30):
                self.post(self.chats[n % 4], str(n))
            self.says("has to wait: unavailable")
        finally:
            shared_nats().start()
        self.post(self.chats[0], "after")
        self.emptied()
        self.check()

    def test_what_has_an_unknown_outcome_is_published_once(self: Any) -> None:
        for stopping in range(1, 4):
            one = self.worker("import outbox; outbox.PATIENCE = 1")
            self.post(self.chats[0], "before")
            self.emptied()
            self.notify.signal(signal.SIGSTOP)
            try:
                for n in range(8):
                    self.post(self.chats[n % 4], f"{stopping} {n}")
                self.says("has to wait: unknown", stopping)
            finally:
                self.notify.signal(signal.SIGCONT)
            self.emptied()
            self.kill(one)
        self.check()

    def test_what_is_refused_is_put_aside_and_the_rest_goes_on(self: Any) -> None:
        chat = self.chats[0]
        subject = f"workspace.1.chat.{chat}.messages"
        good = {
            "message_id": str(uuid4()),
            "chat_id": chat,
            "workspace_id": 1,
            "sender_id": str(uuid4()),
            "timestamp": 1,
        }
        self.post(chat, "first")
        self.put(subject, {"message_id": 1})
        self.put(subject, {**good, "content": "x" * 70_000})
        self.put(subject, {**good, "content": "\ud800"})
        self.put(subject, [])
        self.put_text(subject, "[" * 3000 + "]" * 3000)
        self.put("workspace.1.chat.a b\n.messages", good)
        self.put(subject, {**good, "content": "y" * 60_000})
        self.posted[chat].append("y" * 60_000)
        self.post(chat, "last")
        self.post(self.chats[1], "another")
        self.worker()
        self.emptied()
        self.check()
        errors = [row[2].partition(":")[0] for row in self.rows()]
        wrong = ["invalid_message", "too_large", *["bad_request"] * 3, "unknown_subject"]
        self.assertEqual(errors, wrong)
        self.assertEqual(self.log.read_text().count("is put aside"), 6)

    def test_a_chat_that_cannot_be_published_to_holds_up_no_other(self: Any) -> None:
        key = "a-key-for-one-workspace"
        notify = Server()
        (notify.folder / "keys").write_text(f"{key} name=w scopes=publish,read workspaces=1\n")
        notify.configure(f"[api]\nkeys_file = '{notify.folder / 'keys'}'\n")
        with notify:
            other = {"message_id": 1, "workspace_id": 2, "sender_id": 1, "content": "x", "timestamp": 1}
            for n in range(130):
                self.put(f"workspace.2.chat.{n}.messages", {**other, "chat_id": n})
            self.worker(f"import os; os.environ['NOTIFY_API_KEY'] = '{key}'", notify)
            for n in range(8):
                self.post(self.chats[n % 4], str(n))
            wait_for("the others are published", lambda: len(self.rows()) == 130)
            self.check(notify)
            self.assertEqual({row[2] for row in self.rows()}, {None})

    def test_killed_again_and_again_nothing_is_lost_and_nothing_comes_twice(self: Any) -> None:
        chance = Random(11)
        writers = [threading.Thread(target=self.many, args=(chat,)) for chat in self.chats]
        for one in writers:
            one.start()
        try:
            for number in range(8):
                several = [self.worker() for _ in range(self.at_once)]
                sleep(chance.uniform(0.4, 1.2))  # a random moment
                if number % 4 == 2:
                    self.notify.process.kill()
                    self.notify.process.wait()
                    self.notify.start()
                for one in several:
                    self.kill(one)
        finally:
            for writer in writers:
                writer.join()
        for _ in range(self.at_once):
            self.worker()
        self.emptied()
        self.check()
        self.assertEqual({len(posted) for posted in self.posted.values()}, {self.count})

    #: messages of each chat
    count = 150

    def many(self, chat: int) -> None:
        db = self.connect()
        for n in range(self.count):
            self.post(chat, f"{n}", db)
            sleep(0.03)
        db.close()


class Postgres(Behaviour, SynchronousTestCase):
    name = "outbox_postgres"
    at_once = 2

    def open(self: Any) -> None:
        server = shared_postgres()
        self.environ = {"DATABASE_URL": server.url}
        self.db = self.connect()
        self.addCleanup(self.db.close)
        self.db.execute("DROP TABLE IF EXISTS outbox, messages, chats")
        self.db.execute(self.recipe.TABLES)

    def connect(self) -> Any:
        return psycopg.connect(shared_postgres().url, autocommit=True)

    def found(self, chat: int) -> None:
        self.db.execute("INSERT INTO chats VALUES (%s, 1)", [chat])

    def write(self, db: Any, chat: int, content: str) -> int:
        message_id: int = self.recipe.post(db, chat, 7, content)
        return message_id

    def posting(self, chat: int) -> str:
        return f"program.post(program.psycopg.connect(os.environ['DATABASE_URL']), {chat}, 7, 'never')"

    def put(self, subject: str, payload: Any) -> None:
        with self.db.transaction():
            self.recipe.put(self.db, subject, payload)

    def put_text(self, subject: str, payload: str) -> None:
        self.db.execute("INSERT INTO outbox (subject, payload) VALUES (%s, %s)", [subject, payload])

    def age(self) -> None:
        self.db.execute("UPDATE outbox SET created = created - interval '1 hour'")

    @contextmanager
    def unmarked(self: Any) -> Any:
        # Everyone who wants to write, or to delete, waits for this lock.
        with self.connect() as db, db.transaction():
            db.execute("LOCK TABLE outbox IN SHARE MODE")
            yield

    def test_a_worker_is_told_and_does_not_wait_until_it_looks(self) -> None:
        self.worker("program.POLL = 3600")
        self.post(self.chats[0], "0")
        self.emptied()
        self.post(self.chats[0], "1")
        self.emptied()
        self.check()

    def test_a_worker_that_was_not_told_looks(self) -> None:
        self.worker("program.POLL = 0.5")
        self.post(self.chats[0], "0")
        self.emptied()
        subject = f"workspace.1.chat.{self.chats[0]}.messages"
        payload = {
            "message_id": 1,
            "chat_id": self.chats[0],
            "workspace_id": 1,
            "sender_id": 1,
            "content": "1",
            "timestamp": 1,
        }
        self.db.execute(
            "INSERT INTO outbox (subject, payload) VALUES (%s, %s)", [subject, json.dumps(payload)]
        )
        self.posted[self.chats[0]].append("1")
        self.emptied()
        self.check()

    def test_of_two_who_write_to_a_chat_at_once_the_second_waits_so_that_ids_are_in_the_order_of_commits(
        self,
    ) -> None:
        self.worker()
        chat = self.chats[0]
        second = threading.Thread(target=lambda: self.post(chat, "second", self.connect()))
        with self.connect() as db, db.transaction():
            self.post(chat, "first", db)
            second.start()
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_for(
                "the second waits", lambda: self.db.execute(waits).fetchone() == (1,) or not second.is_alive()
            )
            if not second.is_alive():
                wait_for("it is published too early", lambda: self.kept(chat))
        second.join()
        self.emptied()
        self.assertEqual(self.kept(chat), ["first", "second"])

    def test_of_two_that_wait_for_each_other_one_is_undone_and_never_heard_of(self) -> None:
        self.worker()
        first, second = self.chats[:2]
        both, outcomes = threading.Barrier(2, timeout=20), list[str]()

        def post(name: str, *chats: int) -> None:
            try:
                with self.connect() as db, db.transaction():
                    self.recipe.post(db, chats[0], 7, name)
                    both.wait()
                    self.recipe.post(db, chats[1], 7, name)
            except psycopg.errors.DeadlockDetected:
                outcomes.append(name)

        threads = [
            threading.Thread(target=post, args=("one", first, second)),
            threading.Thread(target=post, args=("other", second, first)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(outcomes), 1)
        for chat in (first, second):
            self.posted[chat].append({"one": "other", "other": "one"}[outcomes[0]])
            # What is rolled back inside a transaction that goes on is not published either.
            with self.db.transaction():
                self.post(chat, "kept")
                with self.db.transaction() as inner:
                    self.recipe.post(self.db, chat, 7, "taken back")
                    raise psycopg.Rollback(inner)
        self.emptied()
        self.check()

    def test_a_chat_that_another_worker_has_is_left_to_that_one(self) -> None:
        first, second = self.chats[:2]
        self.post(first, "0")
        with self.unmarked():
            stopped = self.worker()
            wait_for("it is published", lambda: self.kept(first) == ["0"])
            stopped.send_signal(signal.SIGSTOP)
        self.post(first, "1")
        self.post(second, "0")
        self.worker()
        wait_for("the other chat is published", lambda: len(self.kept(second)) == 1)
        self.assertEqual(self.kept(first), ["0"])
        # Whatever happens to that worker, its chats are free as soon as it is gone.
        self.kill(stopped)
        self.emptied()
        self.check()

    def test_when_the_database_comes_back_it_goes_on(self) -> None:
        one = self.worker()
        self.post(self.chats[0], "0")
        self.emptied()
        self.db.close()
        shared_postgres().kill()
        one.wait(20)  # systemd, or another supervisor, starts it again
        shared_postgres().start()
        self.db = self.connect()
        self.worker()
        self.post(self.chats[0], "1")
        self.emptied()
        self.check()


class Sqlite(Behaviour, SynchronousTestCase):
    name = "outbox_sqlite"
    at_once = 2

    def open(self: Any) -> None:
        self.environ = {"DATABASE": str(temporary_folder(self) / "db")}
        self.db = self.connect()
        self.addCleanup(self.db.close)

    def connect(self) -> Any:
        return self.recipe.connect(self.environ["DATABASE"])

    def write(self, db: Any, chat: int, content: str) -> int:
        message_id: int = self.recipe.post(db, 1, chat, 7, content)
        return message_id

    def posting(self, chat: int) -> str:
        return f"program.post(program.connect(os.environ['DATABASE']), 1, {chat}, 7, 'never')"

    def put(self, subject: str, payload: Any) -> None:
        with self.db:
            self.recipe.put(self.db, subject, payload)

    def put_text(self, subject: str, payload: str) -> None:
        self.db.execute("INSERT INTO outbox (subject, payload) VALUES (?, ?)", [subject, payload])

    def age(self) -> None:
        self.db.execute("UPDATE outbox SET created = created - 3600")

    @contextmanager
    def unmarked(self: Any) -> Any:
        db: sqlite3.Connection = self.connect()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")
            db.close()

    def test_a_second_worker_waits_for_the_end_of_the_first(self) -> None:
        first = self.worker()
        self.post(self.chats[0], "0")
        self.emptied()
        first.send_signal(signal.SIGSTOP)
        second = self.worker()
        self.post(self.chats[0], "1")
        with self.assertRaises(subprocess.TimeoutExpired):
            second.wait(1)
        self.assertEqual(self.kept(self.chats[0]), ["0"])
        self.kill(first)
        self.emptied()
        self.check()
