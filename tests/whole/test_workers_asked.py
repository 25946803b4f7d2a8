"""Operators' requests to a server of several processes: one request, and all processes act on it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import ClientConnection, connect

from notify.auth.tokens import issue
from tests.support.natsd import NatsServer
from tests.support.process import SECRET, TWISTD, Client, Server, service_manager, wait_for
from tests.whole.test_revocation import REVOKED, end
from tests.whole.test_trace import Screen
from tests.whole.test_workers import TWO, answered, samples, workers

#: adds another configuration file, as the last argument
SECOND = "import os, sys; os.execv(sys.argv[2], [*sys.argv[2:], '--config', sys.argv[1]])"


def token(user_id: int, age: float = 0.0) -> str:
    return issue(SECRET, user_id, 1, 3600, time.time() - age)


class Asked:
    """What must hold with each broker."""

    timeout = 240
    config = TWO

    def thread(self, work: Callable[[ExitStack], None]) -> Deferred[None]:
        def run() -> None:
            with ExitStack() as stack:
                work(stack)

        return deferToThread(run)

    def server(self: Any, stack: ExitStack, extra: str = "", drain: str = "1s") -> Server:
        server = Server(f"{self.config}[drain]\nduration = '{drain}'\n{extra}")
        server.environ["STATE_DIRECTORY"] = str(server.folder)
        stack.enter_context(server)
        self.together(server)
        return server

    def together(self, server: Server) -> None:
        """Wait until each process knows the others."""

    def connect(self, stack: ExitStack, server: Server, shown: str) -> ClientConnection:
        socket = stack.enter_context(connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1))
        Client(socket).send(type="auth", token=shown)
        return socket

    def let_in(self: Any, stack: ExitStack, server: Server, shown: str) -> ClientConnection:
        socket: ClientConnection = self.connect(stack, server, shown)
        self.assertTrue(Client(socket).receive()["success"])
        return socket

    def refused_by_all(self: Any, stack: ExitStack, server: Server, shown: str) -> None:
        """Check that this token is refused, by each worker."""
        before = samples(server, "notify_worker_auth_total")
        sockets = [self.connect(stack, server, shown) for _ in range(4)]
        self.assertEqual([end(socket) for socket in sockets], [REVOKED] * 4, server.log()[-2000:])
        after = samples(server, "notify_worker_auth_total")
        refused = [place for place in after if "revoked" in place and after[place] > before.get(place, 0)]
        self.assertEqual(len(refused), 2)

    def restarted(self: Any, server: Server) -> None:
        """Kill one worker, and wait until another serves in its place."""
        count = server.log().count("serves again")
        os.kill(workers(server)[0], signal.SIGKILL)
        wait_for("it serves again", lambda: server.log().count("serves again") > count)
        self.together(server)

    def test_a_token_that_was_revoked_is_good_with_no_worker_nor_with_one_that_comes_later(
        self: Any,
    ) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            server = self.server(stack)
            old = token(7, 60)
            live = [self.let_in(stack, server, old) for _ in range(4)]
            other = self.let_in(stack, server, token(8, 60))
            status, answer = server.http("POST", "/v1/revoke", {"workspace_id": 1, "user_id": 7})
            self.assertEqual((status, answer["closed"], answer["kept"]), (200, 4, True), answer)
            self.assertEqual(answer["reached"], {"answered": 3, "missing": [], "detail": ""})
            self.assertEqual([end(socket) for socket in live], [REVOKED] * 4)
            Client(other).send(type="ping")
            self.assertEqual(Client(other).receive()["type"], "pong")
            self.refused_by_all(stack, server, old)
            self.assertEqual(server.metric("notify_revocations"), 1)
            for _ in range(2):
                self.restarted(server)
            self.refused_by_all(stack, server, old)
            server.restart()
            self.together(server)
            self.refused_by_all(stack, server, old)
            wait_for("the next second", lambda: int(time.time()) > answer["before"], 5)
            for _ in range(2):
                self.let_in(stack, server, token(7))

        return self.thread(test)

    def test_a_share_of_the_clients_of_one_worker_or_of_all_is_sent_away(self: Any) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            server = self.server(stack, drain="20s")
            for number in range(8):
                self.let_in(stack, server, token(number + 1))

            def here() -> list[int]:
                found = samples(server, "notify_worker_connections")
                return [int(found[f'worker="{number}"']) for number in (1, 2)]

            def shed(node: str, share: float) -> tuple[int, Any]:
                status, answer = server.http("POST", "/v1/shed", {"node": node, "share": share})
                return status, answer["clients"] if status == 202 else answer["error"]["code"]

            self.assertEqual(here(), [4, 4])
            self.assertEqual(shed("n-w1", 0.25), (202, 1))
            wait_for("it is gone", lambda: here() == [3, 4])
            self.assertEqual(shed("n", 0.67), (202, 4))
            # They leave one by one, over the time of a drain: most of them are still here.
            self.assertEqual(shed("n", 0.5), (409, "already_shedding"))
            self.assertEqual(shed("n-w2", 0.5), (409, "already_shedding"))
            wait_for("they are gone", lambda: here() == [1, 2], 60)
            self.assertEqual(server.http("POST", "/v1/shed", {"node": "n-w9", "share": 1})[0], 404)

        return self.thread(test)

    def test_a_trace_shows_what_each_process_sees(self: Any) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            server = self.server(stack, "[limits]\nmax_connections_per_user = 2\nmax_connections = 4\n")
            screen = Screen(stack, server, "--user", "7", "--workspace", "1", "--seconds", "60")
            for name in ("n ", "n-w1", "n-w2"):
                screen.shows(name, "0 connections here")
            both = [self.let_in(stack, server, token(7)) for _ in range(2)]
            for name in ("n-w1", "n-w2"):
                screen.shows(name, "auth", "ok")
            self.assertEqual(end(self.connect(stack, server, token(7)))[0], 1013)
            screen.shows("limits.max_connections_per_user is reached")
            status, gone = server.http("POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 7})
            self.assertEqual((status, gone["closed"]), (200, 2))
            self.assertEqual([end(socket)[0] for socket in both], [4503] * 2)
            wait_for("they are gone", lambda: server.metric("notify_sockets") == 0)
            # Connections that the first process turns away, and those that a worker does.
            with ExitStack() as full:
                for number in range(4):
                    self.let_in(full, server, token(number + 1))
                self.assertEqual(answered(server), b"HTTP/1.1 503")
                screen.shows("n ", "turned away", "limit")
            wait_for("they are gone", lambda: server.metric("notify_sockets") == 0)
            with self.assertRaisesRegex(Exception, "403"):
                connect(f"ws://127.0.0.1:{server.public}/ws", origin="https://evil.example")  # type: ignore[arg-type]
            screen.shows("n-w", "turned away", "https://evil.example")
            for name in ("n-w1", "n-w2"):
                screen.shows(name, "close", "4503")
            chat = Screen(stack, server, "--chat", "5", "--workspace", "1", "--seconds", "60")
            chat.shows("n-w2", "here")
            with server.client(1, (5,)) as one, server.client(2, (5,)) as other:
                server.publish(5, "a secret")
                self.assertEqual((one.receive()["content"], other.receive()["content"]), ("a secret",) * 2)
            chat.shows("n ", "publish")
            for name in ("n-w1", "n-w2"):
                chat.shows(name, "message")
            self.assertNotIn("a secret", chat.text())
            # The trace continues in the worker that replaces one that died.
            self.restarted(server)
            for _ in range(2):
                self.let_in(stack, server, token(7))
            wait_for("each tells of one more", lambda: screen.text().count("ok") >= 4)

        return self.thread(test)


class WithMemory(Asked, TestCase):
    """One node with its workers."""

    def test_a_second_configuration_file_is_for_all_and_read_again(self) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            server = Server()
            second = server.folder / "second.toml"
            server.argv = [
                *(sys.executable, "-c", SECOND, str(second), str(TWISTD)),
                *("--nodaemon", "--pidfile="),
            ]
            second.write_text(f"{TWO}[listen]\nallowed_origins = ['https://a.example']\n")
            stack.enter_context(server)
            self.assertEqual(len(workers(server)), 2)
            self.only("https://a.example", server)
            second.write_text(f"{TWO}[listen]\nallowed_origins = ['https://b.example']\n")
            server.signal(signal.SIGHUP)
            server.logged("reloaded; changed: listen.allowed_origins")
            self.only("https://b.example", server)
            second.write_text(f"{TWO}[listen]\nallowed_origin = 5\n")
            server.signal(signal.SIGHUP)
            server.logged(f"stays in force: {second}: unknown key 'listen.allowed_origin'")
            self.restarted(server)
            self.only("https://b.example", server)

        return self.thread(test)

    def only(self, origin: str, server: Server) -> None:
        url = f"ws://127.0.0.1:{server.public}/ws"
        for _ in range(4):
            with self.assertRaisesRegex(Exception, "403"):
                connect(url, origin="https://c.example")  # type: ignore[arg-type]
            with connect(url, origin=origin):  # type: ignore[arg-type]
                pass

    def test_the_service_manager_hears_of_the_first_process_when_all_serve(self) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            manager, environ = stack.enter_context(service_manager())
            server = Server(TWO, environ)
            stack.enter_context(server)

            def until(text: str) -> Iterator[str]:
                while True:
                    said = manager.recv(4096).decode()
                    yield said
                    if text in said:
                        return

            self.assertFalse([said for said in list(until("READY=1"))[:-1] if "Starting" not in said])
            self.let_in(stack, server, token(1))
            list(until("STATUS=Serving 1 client."))

        return self.thread(test)


class WithJetStream(Asked, TestCase):
    """Each process is a node, and learns by itself what is stored."""

    async def setUp(self) -> None:
        self.nats = NatsServer().start()
        self.addCleanup(self.nats.remove)
        await self.nats.up()
        self.config = (
            f"{TWO}[broker]\nplugin = 'jetstream'\n[broker.jetstream]\nservers = ['{self.nats.url}']\n"
            "[registry]\nplugin = 'jetstream_kv'\n"
        )

    def together(self, server: Server) -> None:
        wait_for("they know each other", lambda: server.metric("notify_nodes") == 3)
