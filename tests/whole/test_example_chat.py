"""examples/chat without its page: who may do what in the backend, and what the worker publishes if processes die."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect

from tests.support.chat import Chat, Person
from tests.support.process import Client, wait_for
from tests.support.programs import ROOT, node_modules, program, run

#: ids in the order in which the first start creates them
LAUNCH, LUNCH, PAPERS = 1, 2, 3
ADA, GRACE, RADIA = 1, 2, 3


class Example(TestCase):
    timeout = 180

    def visit(self, visit: Callable[[Chat], None]) -> Deferred[None]:
        def run() -> None:
            with Chat() as chat:
                visit(chat)

        return deferToThread(run)

    def outbox_empties(self, chat: Chat) -> None:
        wait_for("all is told", lambda: not chat.rows("SELECT 1 FROM outbox"))

    def said(self, chat: Chat, chat_id: int = LAUNCH) -> list[str]:
        """The contents of a chat's messages in notify, once the outbox is empty."""
        self.outbox_empties(chat)
        return [message["content"] for message in chat.history(chat_id) if "content" in message]


class Backend(Example):
    def test_a_message_is_stored_and_told_once_however_often_it_is_posted(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada, grace = Person(chat.url, "Ada"), Person(chat.url, "grace")
            ids = {ada.say(LAUNCH, "hello", "a-key") for _ in range(3)}
            self.assertEqual((len(ids), self.said(chat)), (1, ["hello"]))
            self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 1)
            status, state = grace.ask("GET", f"chats/{LAUNCH}")
            self.assertEqual((status, [one["content"] for one in state["messages"]]), (200, ["hello"]))
            self.assertEqual(set(state["position"]), {"epoch", "seq"})
            self.assertEqual(grace.ask("PUT", f"chats/{LAUNCH}/read", {"to": 2**62})[0], 204)
            self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 0)
            ada.say(LAUNCH, "one more")
            self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 1)

        return self.visit(visit)

    def test_a_message_that_cannot_be_told_is_not_stored_either(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            self.stop(chat, "worker")
            chat.rows("ALTER TABLE outbox RENAME TO elsewhere")
            status, _ = ada.ask("POST", f"chats/{LAUNCH}/messages", {"key": "k", "text": "lost?"})
            self.assertEqual((status, chat.rows("SELECT * FROM messages")), (500, []))
            chat.rows("ALTER TABLE elsewhere RENAME TO outbox")
            self.go_on(chat, "worker")
            ada.say(LAUNCH, "not lost")
            self.assertEqual(self.said(chat), ["not lost"])

        return self.visit(visit)

    def stop(self, chat: Chat, name: str) -> None:
        os.kill(chat.pid(name), signal.SIGSTOP)

    def go_on(self, chat: Chat, name: str) -> None:
        os.kill(chat.pid(name), signal.SIGCONT)

    def test_who_is_not_in_a_chat_finds_none(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada, grace = Person(chat.url, "Ada"), Person(chat.url, "Grace")
            message = ada.say(PAPERS, "between us")
            for chat_id in (PAPERS, 4711):
                for method, path, body in (
                    ("GET", "", None),
                    ("GET", "/messages?before=99", None),
                    ("POST", "/messages", {"key": "k", "text": "hi"}),
                    ("PUT", f"/messages/{message}", {"text": "hi"}),
                    ("DELETE", f"/messages/{message}", None),
                    ("PUT", "/read", {"to": 1}),
                    ("POST", "/members", {"name": "Grace"}),
                    ("DELETE", f"/members/{ADA}", None),
                ):
                    answer = grace.ask(method, f"chats/{chat_id}{path}", body)
                    self.assertEqual(answer, (404, {"detail": "no such chat"}), f"{method} {path}")
            # Nor through a chat that she is a member of.
            self.assertEqual(grace.ask("PUT", f"chats/{LAUNCH}/messages/{message}", {"text": "hi"})[0], 404)
            for wrong in (2**63, 2**70, -1, 0, "x"):
                self.assertEqual(grace.ask("GET", f"chats/{wrong}")[0], 422)
                self.assertEqual(grace.ask("GET", f"chats/{LAUNCH}/messages?before={wrong}")[0], 422)
                self.assertEqual(grace.ask("PUT", f"chats/{LAUNCH}/read", {"to": wrong})[0], 422)
            self.assertEqual([one["title"] for one in grace.ask("GET", "chats")[1]], ["Launch", "Lunch"])
            self.assertEqual(Person(chat.url).ask("GET", f"chats/{LAUNCH}")[0], 401)
            self.assertEqual(Person(chat.url).ask("GET", "token")[0], 401)

        return self.visit(visit)

    def test_only_ones_own_messages_and_only_the_owner_removes_others(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada, grace = Person(chat.url, "Ada"), Person(chat.url, "Grace")
            message = ada.say(LAUNCH, "mine")
            self.assertEqual(grace.ask("PUT", f"chats/{LAUNCH}/messages/{message}", {"text": "hers"})[0], 404)
            self.assertEqual(grace.ask("DELETE", f"chats/{LAUNCH}/messages/{message}")[0], 404)
            self.assertEqual(grace.ask("DELETE", f"chats/{LAUNCH}/members/{RADIA}")[0], 403)
            status, edited = ada.ask("PUT", f"chats/{LAUNCH}/messages/{message}", {"text": " still mine "})
            self.assertEqual((status, edited["content"], edited["edited"]), (200, "still mine", 1))
            self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 1)
            status, deleted = ada.ask("DELETE", f"chats/{LAUNCH}/messages/{message}")
            self.assertEqual((status, deleted["content"], deleted["deleted"]), (200, "", True))
            self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 0)
            self.assertEqual(ada.ask("PUT", f"chats/{LAUNCH}/messages/{message}", {"text": "back"})[0], 404)
            for text in ("", "   ", "x" * 2001, "\ud800", 7, None):
                body = {"key": "k", "text": text}
                self.assertEqual(ada.ask("POST", f"chats/{LAUNCH}/messages", body)[0], 422, repr(text))
            self.outbox_empties(chat)
            kinds = [(one.get("kind"), one.get("refers_to")) for one in chat.history(LAUNCH)]
            self.assertEqual(kinds, [(None, None), ("edited", message), ("deleted", message)])

        return self.visit(visit)

    def test_another_site_s_page_can_do_nothing_in_a_user_s_name(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            cookie = ada.headers["Set-Cookie"]
            self.assertIn("HttpOnly", cookie)
            self.assertIn("SameSite=strict", cookie)
            for origin in ("http://evil.example", "null", "http://[", "é", f"http://127.0.0.1:{chat.public}"):
                for method, path, body in (
                    ("POST", f"chats/{LAUNCH}/messages", {"key": "k", "text": "hi"}),
                    ("DELETE", f"chats/{LAUNCH}/members/{ADA}", None),
                    ("POST", "session", {"name": "Grace"}),
                    ("DELETE", "session", None),
                ):
                    status, answer = ada.ask(method, path, body, Origin=origin)
                    self.assertEqual((status, answer), (403, {"detail": "a request of another site's page"}))
            self.assertEqual(ada.ask("GET", "chats", Host="evil.example")[0], 400)
            own = {"key": "k", "text": "hi"}
            self.assertEqual(ada.ask("POST", f"chats/{LAUNCH}/messages", own, Origin=chat.url)[0], 201)
            with urllib.request.urlopen(chat.url) as answer:
                policy = answer.headers["Content-Security-Policy"]
            self.assertIn("default-src 'none'; script-src 'self'; style-src 'self';", policy)
            self.assertNotIn("unsafe", policy)

        return self.visit(visit)

    def test_a_session_ends(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            cookie = ada.cookie
            self.assertEqual(ada.ask("GET", "token")[0], 200)
            self.assertEqual(ada.headers["Cache-Control"], "no-store")
            self.assertNotIn(cookie.partition("=")[2], str(chat.rows("SELECT digest FROM sessions")))
            self.assertEqual(ada.ask("DELETE", "session")[0], 204)
            ada.cookie = cookie
            self.assertEqual(ada.ask("GET", "token")[0], 401)
            self.assertEqual(ada.ask("GET", "session")[1]["user"], None)
            again = Person(chat.url, "Ada")
            chat.rows("UPDATE sessions SET ends = 1")
            self.assertEqual(again.ask("GET", "token")[0], 401)

        return self.visit(visit)

    def test_only_notify_learns_who_may_hear_what(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            secret = (chat.data / "webhook-secret").read_text()

            def ask(secret: str, **asked: Any) -> Any:
                body = {"user_id": GRACE, "workspace_id": 1, "chat_id": LAUNCH, "claims": {}, **asked}
                headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
                url = f"{chat.url}/notify/authorize"
                try:
                    with urllib.request.urlopen(
                        urllib.request.Request(url, json.dumps(body).encode(), headers)
                    ) as answer:
                        return json.load(answer)["allowed"]
                except urllib.error.HTTPError as error:
                    return error.code

            self.assertIs(ask(secret), True)
            for other in ({"chat_id": PAPERS}, {"workspace_id": 2}, {"user_id": "grace"}, {"chat_id": "a-b"}):
                self.assertIs(ask(secret, **other), False, other)
            for wrong in ("", "no", "é"):
                self.assertEqual(ask(wrong), 401)

        return self.visit(visit)


class Worker(Example):
    def test_killed_again_and_again_it_tells_each_message_once_and_in_order(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada, texts = Person(chat.url, "Ada"), []
            for kill in range(4):
                for number in range(25):
                    texts.append(f"{kill}.{number}")
                    ada.say(LAUNCH, texts[-1])
                chat.kill("worker")
            self.assertEqual(self.said(chat), texts)

        return self.visit(visit)

    def test_one_that_dies_between_telling_and_deleting_has_told_it_once(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            os.kill(chat.pid("worker"), signal.SIGSTOP)
            ada.say(LAUNCH, "once")
            with closing(sqlite3.connect(chat.data / "chat.sqlite", isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")  # the worker can publish, but not delete from the outbox
                os.kill(chat.pid("worker"), signal.SIGCONT)
                wait_for("it is told", lambda: chat.history(LAUNCH))
                chat.kill("worker")
                self.assertEqual(len(chat.rows("SELECT * FROM outbox WHERE body LIKE '%once%'")), 1)
            self.assertEqual(self.said(chat), ["once"])

        return self.visit(visit)

    def test_while_somebody_has_the_database_it_waits(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            worker = chat.pid("worker")
            os.kill(worker, signal.SIGSTOP)
            for text in ("one", "two"):
                ada.say(LAUNCH, text)
            with closing(sqlite3.connect(chat.data / "chat.sqlite", isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                os.kill(worker, signal.SIGCONT)
                log = chat.data / "worker.log"
                wait_for("it has given up once", lambda: "database is locked" in log.read_text())
            self.assertEqual(self.said(chat), ["one", "two"])
            self.assertEqual(chat.pid("worker"), worker)

        return self.visit(visit)

    def test_notify_is_away_for_a_while(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada = Person(chat.url, "Ada")
            ada.say(LAUNCH, "before")
            self.assertEqual(self.said(chat), ["before"])
            os.kill(chat.pid("notify"), signal.SIGSTOP)
            try:
                began = time.monotonic()
                for text in ("one", "two", "three"):
                    ada.say(LAUNCH, text)
                self.assertLess(time.monotonic() - began, 2, "posting waits for nobody")
                status, state = ada.ask("GET", f"chats/{LAUNCH}")
                self.assertEqual((status, state["position"], len(state["messages"])), (200, None, 4))
            finally:
                os.kill(chat.pid("notify"), signal.SIGCONT)
            self.assertEqual(self.said(chat), ["before", "one", "two", "three"])
            # With the memory broker its history is lost: new messages arrive, and pages load the rest from the
            # backend.
            chat.kill("notify")
            ada.say(LAUNCH, "after")
            self.assertEqual(self.said(chat), ["after"])

        return self.visit(visit)

    def test_what_notify_refuses_does_not_hold_up_the_rest(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            body = {"subject": f"workspace.1.chat.{LAUNCH}.messages", "payload": {"content": "no ids"}}
            put = "INSERT INTO outbox (key, path, body) VALUES ('a-key', '/v1/publish', ?)"
            chat.rows(put, json.dumps(body))
            Person(chat.url, "Ada").say(LAUNCH, "behind it")
            self.assertEqual(self.said(chat), ["behind it"])
            self.assertIn("notify refuses it", (chat.data / "worker.log").read_text())

        return self.visit(visit)

    def test_who_is_removed_hears_no_more_and_who_is_added_does(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            ada, grace = Person(chat.url, "Ada"), Person(chat.url, "Grace")
            with connect(f"ws://127.0.0.1:{chat.public}/ws", close_timeout=1) as websocket:
                client = Client(websocket)
                client.send(type="auth", token=grace.ask("GET", "token")[1]["value"])
                self.assertEqual(client.receive()["user_id"], GRACE)

                def subscribe(chat_id: int) -> Any:
                    client.send(type="subscribe", chat_id=chat_id, id=9)
                    while (frame := client.receive()).get("id") != 9:
                        pass
                    return frame.get("code", frame["type"])

                self.assertEqual(subscribe(PAPERS), "forbidden")
                self.assertEqual(subscribe(LAUNCH), "subscribed")
                self.assertEqual(ada.ask("DELETE", f"chats/{LAUNCH}/members/{GRACE}")[0], 204)
                ada.say(LAUNCH, "without her")
                told = [client.receive() for _ in range(2)]
                self.assertEqual([one["type"] for one in told], ["error", "notification"])
                self.assertEqual((told[0]["code"], told[0]["chat_id"]), ("forbidden", LAUNCH))
                self.assertEqual((told[1]["kind"], told[1]["data"]), ("chats", {"chat_id": LAUNCH}))
                self.assertEqual(subscribe(LAUNCH), "forbidden")
                self.outbox_empties(chat)
                self.assertEqual(ada.ask("POST", f"chats/{LAUNCH}/members", {"name": "GRACE"})[0], 204)
                self.assertEqual(client.receive()["kind"], "chats")
                self.assertEqual(ada.ask("POST", f"chats/{LAUNCH}/members", {"name": "Nobody"})[0], 422)
                # notify remembers a refusal for five seconds; this matters to a user who subscribes before being
                # told.
                wait_for("she is let in", lambda: subscribe(LAUNCH) == "subscribed")
                ada.say(LAUNCH, "with her")
                self.assertEqual(client.receive()["content"], "with her")
                self.assertEqual(grace.ask("GET", "chats")[1][0]["unread"], 1, "what came before is read")

        return self.visit(visit)


class Types(TestCase):
    def test_the_page_uses_the_client_as_its_types_say(self) -> None:
        tsc, page = (
            node_modules("typescript") / "typescript" / "bin" / "tsc",
            ROOT / "examples" / "chat" / "page",
        )
        options = {
            "allowJs": True,
            "checkJs": True,
            "noEmit": True,
            "types": [],
            "target": "es2022",
            "module": "es2022",
            "moduleResolution": "bundler",
            "lib": ["es2022", "dom", "dom.iterable"],
            "paths": {"/client/*": [str(ROOT / "notify" / "web" / "client" / "*")]},
        }
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "tsconfig.json").write_text(
            json.dumps({"compilerOptions": options, "files": [str(page / "chat.js")]})
        )
        run(program("node"), tsc, "-p", folder)


class Command(Example):
    def test_it_ends_what_it_started(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            pids = [chat.pid(name) for name in ("backend", "notify", "worker")]
            chat.process.send_signal(signal.SIGINT)
            self.assertEqual(chat.process.wait(60), 0)
            self.assertTrue(chat.said().endswith("stopping\n"))
            for pid in pids:
                self.assertRaises(ProcessLookupError, os.kill, pid, 0)
            # The next start goes on with the existing data.
            with Chat() as other:
                self.assertEqual(other.process.poll(), None)

        return self.visit(visit)

    def test_another_one_in_the_same_folder_says_what_is_there_and_ends(self) -> Deferred[None]:
        def visit(chat: Chat) -> None:
            pids = {name: chat.pid(name) for name in ("backend", "notify", "worker")}
            for others in (f"kill {chat.process.pid}", "kill"):
                status, said = chat.again()
                self.assertEqual(status, 1)
                self.assertIn(f"{chat.data} is in use", said)
                self.assertIn(others, said)
                for pid in pids.values():
                    self.assertIn(f" {pid}", said)
                if chat.process.poll() is None:
                    ada = Person(chat.url, "Ada")
                    ada.say(LAUNCH, "the first one is not disturbed")
                    self.assertEqual(self.said(chat), ["the first one is not disturbed"])
                    # The processes that it started are left behind, and so is the outbox.
                    chat.process.kill()
                    chat.process.wait()
            command = said.split("`")[1]
            subprocess.run(["sh", "-c", command], check=False, capture_output=True)
            wait_for("all are gone", lambda: chat.again()[0] == 0)

        return self.visit(visit)

    def test_one_that_fails_ends_all_and_is_named(self) -> Deferred[None]:
        def run() -> None:
            chat = Chat()
            with socket.create_server(("127.0.0.1", chat.public)):
                chat.start()
                try:
                    self.assertEqual(chat.process.wait(60), 1)
                    self.assertRegex(
                        chat.said(), r"notify has failed with status 1; \S+notify\.log ends with\n"
                    )
                finally:
                    chat.__exit__(None, None, None)

        return deferToThread(run)
