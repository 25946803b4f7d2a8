"""Three nodes on one NATS: a call to one of them acts on the users of all, and reports which nodes it did not reach."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.natsd import NatsServer
from tests.support.process import SECRET, Client, Server, wait_for

CONFIG = """[server]
node = "{name}"
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["{nats}"]
[registry]
plugin = "jetstream_kv"
[auth]
plugin = "webhook"
[auth.webhook]
authorize_url = "{backend}"
allow_ttl = "1h"
deny_ttl = "0s"
recheck = "0s"
[auth.webhook.jwt]
secret = "{secret}"
[drain]
delay = "0s"
duration = "0s"
"""


class Backend(ThreadingHTTPServer):
    """The webhook, which decides who may see which chat, until the test is over."""

    daemon_threads = True

    def __init__(self) -> None:
        self.removed: set[tuple[int, int]] = set()
        super().__init__(("127.0.0.1", 0), Question)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Question(BaseHTTPRequestHandler):
    server: Backend

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = (asked["user_id"], asked["chat_id"]) not in self.server.removed
        body = json.dumps({"allowed": allowed}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Suppress the log."""


class ThreeNodes(TestCase):
    timeout = 240

    def run_on(self, test: Any) -> Deferred[None]:
        return deferToThread(self.with_nodes, test)

    def with_nodes(self, test: Any) -> None:
        with ExitStack() as stack:
            nats = NatsServer().start()
            stack.callback(nats.remove)
            wait_for("NATS listens", nats.listens)
            self.backend = Backend()
            stack.callback(self.backend.server_close)
            stack.callback(self.backend.shutdown)
            address = f"http://127.0.0.1:{self.backend.server_port}/"
            self.nodes = [
                stack.enter_context(
                    Server(CONFIG.format(name=name, nats=nats.url, backend=address, secret=SECRET))
                )
                for name in ("node-a", "node-b", "node-c")
            ]
            for node in self.nodes:
                wait_for("it knows the others", lambda node=node: node.metric("notify_nodes") == 3)
            test(stack, *self.nodes)

    def ask(self, node: Server, method: str, path: str, body: object = None) -> Any:
        status, answer = node.http(method, path, body)
        self.assertEqual(status, 200, answer)
        return answer

    def all_answered(self, answer: Any) -> None:
        self.assertEqual(answer["reached"], {"answered": 3, "missing": [], "detail": ""})

    def joined(self, client: Client, chat_id: int) -> str:
        """Subscribe; return the answer's error code or type."""
        client.send(type="subscribe", chat_id=chat_id, id=99)
        while (answer := client.receive()).get("id") != 99:
            pass
        return str(answer.get("code", answer["type"]))

    def test_each_call_acts_on_the_users_of_other_nodes(self) -> Deferred[None]:
        def test(stack: ExitStack, a: Server, b: Server, c: Server) -> None:
            first = stack.enter_context(b.client(7, (1, 2)))
            second = stack.enter_context(c.client(7, (2,)))
            other = stack.enter_context(c.client(8, (2,)))

            found = self.ask(a, "GET", "/v1/connections?user_id=7&workspace_id=1")
            self.all_answered(found)
            told = sorted((one["node"], one["chats"]) for one in found["connections"])
            self.assertEqual(told, [("node-b", [1, 2]), ("node-c", [2])])
            for one in found["connections"]:
                self.assertIn("websockets", one["client"])
            found = self.ask(a, "GET", "/v1/topics?workspace_id=1")
            self.all_answered(found)
            members = {topic["chat_id"]: topic["nodes"] for topic in found["topics"]}
            self.assertEqual(members, {1: {"node-b": 1}, 2: {"node-b": 1, "node-c": 2}})
            found = self.ask(a, "GET", "/v1/nodes")
            self.all_answered(found)
            self.assertEqual(
                [
                    (one["node"], one["connections"], one["stage"], one["broker"]["ready"])
                    for one in found["nodes"]
                ],
                [
                    ("node-a", 0, "serving", True),
                    ("node-b", 1, "serving", True),
                    ("node-c", 2, "serving", True),
                ],
            )

            # A member is removed: the backend knows, but the nodes cache its answer for an hour.
            self.backend.removed.add((7, 2))
            self.assertEqual(self.joined(second, 2), "subscribed")
            body = {"workspace_id": 1, "user_id": 7, "chat_id": 2}
            answer = self.ask(a, "POST", "/v1/unsubscribe", body)
            self.all_answered(answer)
            self.assertEqual(answer["ended"], 2)
            for client in (first, second):
                error = client.receive()
                self.assertEqual((error["code"], error["chat_id"]), ("forbidden", 2))
                self.assertEqual(self.joined(client, 2), "forbidden")
            self.assertEqual(a.publish(2, "for members")[0], 200)
            self.assertEqual(other.receive()["content"], "for members")
            self.assertEqual(a.publish(1, "still yours", 2)[0], 200)
            self.assertEqual(first.receive()["content"], "still yours")

            answer = self.ask(
                b, "POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 8, "reconnect": True}
            )
            self.all_answered(answer)
            self.assertEqual(answer["closed"], 1)
            code, advice = other.closed()
            self.assertEqual((code, [*advice]), (1012, ["retry_after_ms"]))
            answer = self.ask(b, "POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 7})
            self.assertEqual(answer["closed"], 2)
            self.assertEqual([first.closed()[0], second.closed()[0]], [4503, 4503])

            status, answer = a.http("POST", "/v1/reload", {"node": "node-c"})
            self.assertEqual((status, answer), (202, {"node": "node-c", "reloading": True}))
            c.logged("reloaded; changed")
            status, answer = a.http("POST", "/v1/drain", {"node": "node-c"})
            self.assertEqual((status, answer), (202, {"node": "node-c", "draining": True}))
            self.assertEqual(c.process.wait(30), 0)
            # It announced that it is leaving, so it does not count as missing.
            found = self.ask(a, "GET", "/v1/nodes")
            self.assertEqual(found["reached"], {"answered": 2, "missing": [], "detail": ""})
            self.assertEqual(
                a.http("POST", "/v1/drain", {"node": "node-c"})[1]["error"]["code"], "no_such_node"
            )

        return self.run_on(test)

    def test_a_node_that_was_killed_is_named(self) -> Deferred[None]:
        def test(stack: ExitStack, a: Server, b: Server, c: Server) -> None:
            client = stack.enter_context(b.client(7, (1,)))
            c.process.kill()
            answer = self.ask(a, "POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 7})
            self.assertEqual(answer["closed"], 1)
            self.assertEqual(answer["reached"], {"answered": 2, "missing": ["node-c"], "detail": ""})
            self.assertEqual(client.closed()[0], 4503)
            status, answer = a.http("POST", "/v1/drain", {"node": "node-c"})
            self.assertEqual((status, answer["error"]["code"]), (504, "timeout"))
            c.process.wait()
            c.start()
            wait_for("it is there again", lambda: c.metric("notify_nodes") == 3)
            wait_for(
                "its earlier life is forgotten",
                lambda: not self.ask(a, "GET", "/v1/nodes")["reached"]["missing"],
            )

        return self.run_on(test)
