"""Three nodes: a trace requested from one of them shows, on one screen, why a user of another node gets nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from notify.auth.tokens import issue
from tests.support.process import KEY, SECRET, Client, Server, token, wait_for
from tests.whole import test_cluster

MORE = """[listen]
allowed_origins = ["https://app.example"]
[limits]
max_connections_per_user = 3
send_queue = "64KiB"
"""


class Screen:
    """``notify trace`` as a separate process, and its output."""

    def __init__(self, stack: ExitStack, node: Server, *arguments: str) -> None:
        self.path = node.folder / f"trace-{time.monotonic_ns()}"
        out = stack.enter_context(self.path.open("wb"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "notify.cli.main", "trace", *arguments],
            env={**os.environ, "NOTIFY_API_URL": f"http://127.0.0.1:{node.internal}", "NOTIFY_API_KEY": KEY},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def text(self) -> str:
        return self.path.read_text()

    def shows(self, *parts: str) -> str:
        """Wait for a line that contains all of these."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.text().splitlines() if all(part in line for part in parts)]
            return bool(found)

        try:
            wait_for(f"a line with {parts}", look)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None
        return found[0]


def dial(stack: ExitStack, node: Server, sent: str) -> Client:
    """A client that has sent a token."""
    client = Client(stack.enter_context(connect(f"ws://127.0.0.1:{node.public}/ws", close_timeout=1)))
    client.send(type="auth", token=sent)
    return client


def end_of(client: Client) -> int:
    """Wait until the server closes the connection; return the code."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            client.socket.recv(10)
    code = client.socket.close_code
    assert code is not None
    return code


class Traced(TestCase):
    timeout = 240
    run_on = test_cluster.ThreeNodes.run_on
    with_nodes = test_cluster.ThreeNodes.with_nodes

    def setUp(self) -> None:
        self.patch(test_cluster, "CONFIG", test_cluster.CONFIG + MORE)

    def test_each_reason_is_on_the_screen(self) -> Deferred[None]:
        def test(stack: ExitStack, a: Server, b: Server, c: Server) -> None:
            screen = Screen(stack, a, "--user", "7", "--workspace", "1", "--seconds", "120")
            for name in ("node-a", "node-b", "node-c"):
                screen.shows(name, "0 connections here")

            # A wrong token.
            wrong = issue("another secret of as many characters as it needs", 7, 1, 3600, time.time())
            self.assertEqual(end_of(dial(stack, b, wrong)), 4500)
            screen.shows(
                "node-b", "auth", "says it is user 7 of workspace 1: not verified", "signature is wrong"
            )
            screen.shows("node-b", "close", "4500")
            old = issue(SECRET, 7, 1, 1, time.time() - 60)
            self.assertEqual(end_of(dial(stack, c, old)), 4500)
            screen.shows("node-c", "auth", "the token has expired")

            # A refused origin.
            with self.assertRaises(InvalidStatus):
                connect(f"ws://127.0.0.1:{c.public}/ws", origin="https://evil.example")
            screen.shows(
                "node-c",
                "turned away",
                "? somebody, from 127.0.0.1",
                "https://evil.example",
                "allowed_origins",
            )

            # Connected, but subscribed to nothing; not a member of the chat.
            client = stack.enter_context(b.client(7))
            screen.shows("node-b", "auth", "ok")
            self.backend.removed.add((7, 2))
            client.send(type="subscribe", chat_id=2)
            screen.shows("node-b", "subscribe", "chat 2", "forbidden", "the webhook said no")
            late = Screen(stack, c, "--user", "7", "--seconds", "60")
            late.shows("node-b", "connection", "subscribed to NOTHING")

            # Published to a chat to which it is not subscribed, and to one to which it is.
            self.assertEqual(c.publish(5, "not to be shown")[0], 200)
            screen.shows("node-c", "publish", "workspace.1.chat.5.messages", "ok")
            client.send(type="subscribe", chat_id=3, id=3)
            screen.shows("node-b", "subscribe", "chat 3", "ok")
            self.assertEqual(a.publish(3, "not to be shown", 2)[0], 200)
            screen.shows("node-b", "message", "workspace.1.chat.3.messages", "to 1 of its connections here")

            # Connected in another workspace than the one that is published to.
            other = dial(stack, c, token(7, 2))
            self.assertTrue(other.receive()["success"])
            screen.shows("node-c", "auth", "? user 7 of ANOTHER workspace, 2", "ok")

            # A limit; then the webhook is down.
            for _ in range(2):
                stack.enter_context(b.client(7))
            self.assertEqual(end_of(dial(stack, b, token(7))), 1013)
            screen.shows("node-b", "auth", "refused", "limits.max_connections_per_user is reached")

            self.backend.shutdown()
            self.backend.server_close()
            client.send(type="subscribe", chat_id=4)
            screen.shows("node-b", "subscribe", "chat 4", "unavailable", "the webhook gave no answer")

            # A client that does not read.
            text = "x" * 60_000
            for number in range(200):
                payload = {
                    "notification_id": number, "workspace_id": 1, "user_id": 7, "kind": "k", "data": text, "timestamp": 1,
                }  # fmt: skip
                b.http(
                    "POST", "/v1/publish", {"subject": "workspace.1.user.7.notifications", "payload": payload}
                )
                if "4001" in screen.text():
                    break
            screen.shows("node-b", "close", "4001", "slow client")

            shown = screen.text() + late.text()
            self.assertNotIn("not to be shown", shown)
            self.assertNotIn("xxx", shown)
            for secret in (wrong, old, token(7).rpartition(".")[0], KEY):
                self.assertNotIn(secret, shown)

        return self.run_on(test)

    def test_a_node_that_was_killed_is_said_and_one_that_comes_is_asked(self) -> Deferred[None]:
        def test(stack: ExitStack, a: Server, b: Server, c: Server) -> None:
            screen = Screen(stack, a, "--user", "7", "--seconds", "120", "--json")
            screen.shows('"watching"', '"node-c"')
            c.process.kill()
            screen.shows('"missing"', '"node-c"')
            stack.enter_context(b.client(7, (1,)))
            screen.shows('"subscribe"', '"node-b"')
            c.process.wait()
            c.start()
            wait_for(
                "its new life is asked", lambda: screen.text().count('"watching", "node": "node-c"') == 2, 40
            )
            self.assertEqual(b.http("GET", "/v1/trace?workspace_id=1&user_id=7&seconds=1")[0], 200)
            told = [json.loads(line) for line in screen.text().splitlines()]
            self.assertEqual({one["what"] for one in told if one.get("node") == "node-a"}, {"watching"})

        return self.run_on(test)
