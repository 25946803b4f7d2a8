"""Revoked tokens, on three nodes and with the client libraries: refused everywhere, even by nodes that were away."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from notify.auth.tokens import issue
from tests.support.natsd import NatsServer
from tests.support.process import SECRET, Client, Server, wait_for
from tests.support.programs import ROOT, program
from tests.support.proxy import Proxy
from tests.whole.test_cluster import CONFIG, Backend

#: the close that tells a client to return with a new token
REVOKED = (4002, "token revoked")

PYTHON = """
import asyncio, sys, time
from notify.auth.tokens import issue
from notify.client import AsyncioClient

def token():
    print("token", flush=True)
    return issue(sys.argv[2], 7, 1, 3600, time.time())

async def main():
    tell = lambda state: print(state.name, flush=True)
    async with AsyncioClient(sys.argv[1], token, on_state=tell) as client:
        async for message in client.chat(1):
            print("got", message.content, flush=True)

asyncio.run(main())
"""

JAVASCRIPT = """
import { createHmac } from "node:crypto";
import { NotifyClient } from "%s";

const [url, secret] = process.argv.slice(-2);
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
function token() {
  console.log("token");
  const now = Math.floor(Date.now() / 1000);
  const text = `${part({ alg: "HS256" })}.${part({ id: 7, workspace_id: 1, iat: now, exp: now + 3600 })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}
const client = new NotifyClient(url, { token });
client.on("state", ({ state }) => console.log(state));
client.start();
for await (const message of client.chat(1)) console.log("got", message.content);
"""


def token(user_id: int, age: float = 0.0, **claims: Any) -> str:
    return issue(SECRET, user_id, 1, 3600, time.time() - age, claims=claims)


def end(socket: ClientConnection, seconds: float = 30) -> tuple[int, str]:
    """Wait until the server closes the connection; return code and reason."""
    try:
        while True:
            socket.recv(seconds)
    except ConnectionClosed as error:
        if error.rcvd is None:
            raise AssertionError(f"the server hung up without a close frame: {error}") from error
        return error.rcvd.code, error.rcvd.reason


class Nodes(TestCase):
    timeout = 300

    def in_a_thread(self, test: Any) -> Deferred[None]:
        def run() -> None:
            with ExitStack() as stack:
                test(stack)

        return deferToThread(run)

    def server(self, stack: ExitStack, name: str, nats: str) -> Server:
        config = CONFIG.format(name=name, nats=nats, backend=self.backend, secret=SECRET)
        return stack.enter_context(Server(config))

    def nats(self, stack: ExitStack) -> NatsServer:
        nats = NatsServer().start()
        stack.callback(nats.remove)
        wait_for("NATS listens", nats.listens)
        backend = Backend()
        stack.callback(backend.server_close)
        stack.callback(backend.shutdown)
        self.backend = f"http://127.0.0.1:{backend.server_port}/"
        return nats

    def proxy(self, stack: ExitStack, nats: NatsServer, port: int = 0) -> Proxy:
        proxy: Proxy = blockingCallFromThread(reactor, lambda: Proxy(nats.port, port=port))
        stack.callback(self.cut, proxy)
        return proxy

    def cut(self, proxy: Proxy) -> None:
        blockingCallFromThread(reactor, proxy.cut)
        blockingCallFromThread(reactor, maybeDeferred, proxy.stop)

    def connect(self, stack: ExitStack, node: Server, shown: str) -> ClientConnection:
        socket = stack.enter_context(connect(f"ws://127.0.0.1:{node.public}/ws", close_timeout=1))
        Client(socket).send(type="auth", token=shown)
        return socket

    def let_in(self, stack: ExitStack, node: Server, shown: str) -> ClientConnection:
        socket = self.connect(stack, node, shown)
        self.assertTrue(Client(socket).receive()["success"])
        return socket

    def refused(self, stack: ExitStack, node: Server, shown: str) -> None:
        self.assertEqual(end(self.connect(stack, node, shown)), REVOKED, node.log()[-2000:])

    def revoke(self, node: Server, user_id: int, **more: Any) -> tuple[int, Any]:
        return node.http("POST", "/v1/revoke", {"workspace_id": 1, "user_id": user_id, **more})

    def know_each_other(self, *nodes: Server) -> None:
        for node in nodes:
            wait_for("it knows the others", lambda node=node: node.metric("notify_nodes") == len(nodes))


class ThreeNodes(Nodes):
    def test_a_token_that_was_revoked_is_good_nowhere_any_more(self) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            nats = self.nats(stack)
            proxy = self.proxy(stack, nats)
            a, b = (self.server(stack, name, nats.url) for name in ("node-a", "node-b"))
            c = self.server(stack, "node-c", proxy.url)
            self.know_each_other(a, b, c)
            old, unsaid, other = token(7, 60), token(7, iat=None), token(8, 60)
            on_b = [self.let_in(stack, b, shown) for shown in (old, unsaid)]
            on_c, another = self.let_in(stack, c, old), self.let_in(stack, c, other)
            Client(on_c).send(type="subscribe", chat_id=1, id=1)
            self.assertEqual(Client(on_c).receive()["type"], "subscribed")

            port = proxy.port
            self.cut(proxy)
            c.logged("disconnected from NATS")
            begun = time.monotonic()
            status, answer = self.revoke(a, 7)
            self.assertEqual(status, 200, answer)
            self.assertEqual((answer["closed"], answer["kept"]), (2, True))
            self.assertEqual(answer["reached"]["missing"], ["node-c"])
            self.assertEqual([end(socket) for socket in on_b], [REVOKED] * 2)
            self.assertLess(time.monotonic() - begun, 10)
            for node in (a, b):
                for shown in (old, unsaid):
                    self.refused(stack, node, shown)
            b.logged("user 7 of workspace 1: the token is refused: it does not say when it was issued")

            # The node that was cut off is back: it closes the connections it had, and accepts no new ones.
            self.proxy(stack, nats, port)
            self.assertEqual(end(on_c), REVOKED)
            self.refused(stack, c, old)
            # A node that starts now, and one that was dead: neither received the revocation.
            d = self.server(stack, "node-d", nats.url)
            self.refused(stack, d, old)
            b.signal(signal.SIGKILL)
            b.process.wait()
            status, answer = self.revoke(a, 8)
            self.assertEqual(
                (status, answer["closed"], answer["reached"]["missing"]), (200, 1, ["node-b"]), answer
            )
            self.assertEqual(end(another), REVOKED)
            b.start()
            for node in (a, b, c, d):
                self.refused(stack, node, other)
                self.refused(stack, node, old)

            # A new token is valid after at most a second.
            wait_for("the next second", lambda: int(time.time()) > answer["before"], 5)
            for node in (a, b, c, d):
                for user_id in (7, 8):
                    self.let_in(stack, node, token(user_id))

        return self.in_a_thread(test)

    def test_who_was_revoked_while_a_node_was_cut_off_gets_nothing_of_what_came_meanwhile(
        self,
    ) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            nats = self.nats(stack)
            far = self.proxy(stack, nats)
            a, b = self.server(stack, "node-a", nats.url), self.server(stack, "node-b", far.url)

            def member(user_id: int) -> Client:
                client = Client(self.let_in(stack, b, token(user_id, 60)))
                client.send(type="subscribe", chat_id=10, id=1)
                self.assertEqual(client.receive()["type"], "subscribed")
                return client

            other = member(8)
            # Control and broker have separate connections: which one is back first is random.
            for user_id in (7, 17, 27):
                self.know_each_other(a, b)
                removed = [member(user_id) for _ in range(3)]
                self.cut(far)
                status, answer = self.revoke(a, user_id)
                self.assertEqual((status, answer["kept"]), (200, True), answer)
                for number in range(20):
                    self.assertEqual(a.publish(10, "secret", number)[0], 200)
                far = self.proxy(stack, nats, far.port)
                for client in removed:
                    with self.assertRaises(ConnectionClosed) as closed:
                        self.fail(client.receive(30))
                    self.assertEqual(closed.exception.rcvd and closed.exception.rcvd.code, REVOKED[0])
                self.assertEqual([other.receive()["message_id"] for _ in range(20)], [*range(20)])

        return self.in_a_thread(test)

    def test_what_could_not_be_kept_is_said_and_done_as_far_as_it_can_be(self) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            nats = self.nats(stack)
            a, b = (self.server(stack, name, nats.url) for name in ("node-a", "node-b"))
            self.know_each_other(a, b)
            old = token(7, 60)
            here, there = self.let_in(stack, a, old), self.let_in(stack, b, old)
            nats.pause()
            status, answer = self.revoke(a, 7)
            self.assertEqual((status, answer["error"]["code"]), (503, "not_kept"), answer)
            self.assertIn("1 connections closed, on 1 nodes, not on node-b", answer["error"]["message"])
            self.assertEqual(end(here), REVOKED)
            self.refused(stack, a, old)
            nats.resume()

            def kept() -> bool:
                status, answer = self.revoke(a, 7)
                return status == 200 and answer["kept"]

            wait_for("NATS is back", kept)
            self.assertEqual(end(there), REVOKED)
            # A node that cannot read the stored revocations accepts nobody, either.
            nats.pause()
            b.signal(signal.SIGKILL)
            b.process.wait()
            with b.log_file.open("ab") as log:
                b.process = subprocess.Popen(
                    [*b.argv, "notify", "--config", str(b.file)],
                    stdout=log,
                    stderr=log,
                    cwd=b.folder,
                    env=b.environ,
                )
            wait_for("it answers", lambda: self.health(b))
            self.assertEqual(self.health(b), 503)
            nats.resume()
            wait_for("it is ready", b.ready)
            self.refused(stack, b, old)

        return self.in_a_thread(test)

    def health(self, node: Server) -> int:
        try:
            return node.http("GET", "/health/ready")[0]
        except OSError:
            return 0


class OneNode(Nodes):
    def test_it_outlives_a_restart_where_there_is_a_state_directory(self) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            node = stack.enter_context(Server("", {"STATE_DIRECTORY": folder}))
            old = token(7, 60)
            live = self.let_in(stack, node, old)
            status, answer = self.revoke(node, 7)
            self.assertEqual((status, answer["closed"], answer["kept"]), (200, 1, True))
            self.assertEqual(end(live), REVOKED)
            node.signal(signal.SIGKILL)
            node.process.wait()
            node.start()
            self.refused(stack, node, old)
            self.assertIn(
                "in the future", self.revoke(node, 7, before=time.time() + 60)[1]["error"]["message"]
            )

        return self.in_a_thread(test)


class Libraries(Nodes):
    """A client of each library reconnects by itself, even if it gets its token in the second of the revocation."""

    def come_back(self, *command: str) -> Deferred[None]:
        def test(stack: ExitStack) -> None:
            node = stack.enter_context(Server())
            output = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "output"
            with output.open("w") as file:
                client = subprocess.Popen(
                    [*command, f"ws://127.0.0.1:{node.public}/ws", SECRET], cwd=ROOT, stdout=file, stderr=file
                )
            stack.callback(client.wait)
            stack.callback(client.kill)

            def said(what: str) -> int:
                self.assertIsNone(client.poll(), output.read_text())
                return output.read_text().split("\n").count(what)

            wait_for("it is connected", lambda: said("connected"))
            for count in (1, 2):
                status, answer = self.revoke(node, 7)
                self.assertEqual((status, answer["closed"]), (200, 1), output.read_text())
                wait_for("it is there again", lambda count=count: said("connected") > count, 60)
                self.assertGreater(said("token"), count)
            self.assertEqual(said("closed"), 0)
            wait_for(
                "it is in its chat again",
                lambda: node.http("GET", "/v1/presence?workspace_id=1&chat_id=1")[1]["users"],
            )
            self.assertEqual(node.publish(1, "hello")[0], 200)
            wait_for("it receives", lambda: said("got hello"))

        return self.in_a_thread(test)

    def test_that_of_python(self) -> Deferred[None]:
        return self.come_back(sys.executable, "-c", PYTHON)

    def test_that_of_javascript(self) -> Deferred[None]:
        module = (ROOT / "notify" / "web" / "client" / "notify-client.js").as_uri()
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(lambda: __import__("shutil").rmtree(folder))
        (folder / "client.mjs").write_text(JAVASCRIPT % module)
        # With this flag Node has its own WebSocket from version 20 on; from 22 on it has one anyway.
        return self.come_back(program("node"), "--experimental-websocket", str(folder / "client.mjs"))
